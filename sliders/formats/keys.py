"""From the keys of a slider file to its layers, and back.

A key is a layer's name and the ending of one of its parts. Trainers spell both differently: `layer_names` knows
the names, this module the endings, and `adapters` what the parts of a layer make together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import PARTS
from ..adapters.kind import ALPHA, BIAS, DOWN, PEFT_BIAS, PEFT_MAGNITUDE, UP
from ..changes import Adapter, Change, LowRank, change_from, kind_of
from .layer_names import comfyui_names, listed
from .peft import PeftConfig, config_of

_SPELLINGS = {
    **{f".{part}": part for part in PARTS if part not in (PEFT_BIAS, PEFT_MAGNITUDE)},
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".magnitude": PEFT_MAGNITUDE,  # ai-toolkit
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
}
# Longer endings first: one may end in another
_ENDINGS = tuple(sorted(_SPELLINGS, key=len, reverse=True))
# PEFT: lora_A, lora_A.weight, lora_A.<adapter's name>.weight
_PEFT_KEY = re.compile(
    r"(?P<name>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<end>weight|bias))?",
    re.DOTALL,
)
_PEFT_PARTS = {
    ("lora_A", "weight"): DOWN,
    ("lora_B", "weight"): UP,
    ("lora_B", "bias"): PEFT_BIAS,
    ("lora_magnitude_vector", "weight"): PEFT_MAGNITUDE,
}
# USO's adapters for Flux: each layer's name ends in "_lora", and two streams of a block in "_lora1" and "_lora2"
_USO_KEY = re.compile(r"(?P<name>.+\.processor\.(?:qkv|proj)_lora[12]?)\.(?P<part>down|up)\.weight", re.DOTALL)
_UNSUPPORTED = {
    ".set_weight": "a replaced weight, as control LoRAs have it; it has no strength, so it is no slider",
    ".reshape_weight": "a change of a weight's shape, as control LoRAs have it; it is no slider",
    ".oft_diag": "OFT in an old layout",
}


@dataclass(frozen=True)
class FileReport:
    """What is in a slider file, as it is written there.

    kinds: the number of layers of each kind of change. ranks, alphas: the different ones, in ascending order.
    without_alpha: the number of layers without an alpha that one would scale; their scale is 1.
    dtypes: of the weights. renamed: what the file calls the layers that have other names in ComfyUI, by these.
    notes: what else should be known, such as keys that belong to no layer.
    """

    kinds: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    without_alpha: int
    dtypes: tuple[str, ...]
    renamed: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GroupedKeys:
    """The keys of a file: those of slider layers, by layer and part, and those of none.

    layers: for each layer's name in the file, its parts with their keys. strays: keys of no layer.
    orphans: alphas that stand beside no weights.
    """

    layers: Mapping[str, Mapping[str, str]]
    strays: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """The keys of all layers."""
        return tuple(key for parts in self.layers.values() for key in parts.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out, by name."""
        left = (
            ("an alpha without weights, left out", "alphas without weights, left out", self.orphans),
            ("a key of no slider layer, left out", "keys of no slider layer, left out", self.strays),
        )
        return tuple(
            f"{one if len(keys) == 1 else f'{len(keys)} {many}'}: {listed(keys)}" for one, many, keys in left if keys
        )


def group_keys(keys: Iterable[str]) -> GroupedKeys:
    """Group the keys of a file by layer and part, without looking at a tensor.

    Raises ValueError if there is no slider layer among them, two keys are for one part, or one is of a kind that
    is no slider.
    """
    keys = tuple(keys)
    grouped: dict[str, dict[str, str]] = {}
    strays = []
    for key in keys:
        for mark, what in _UNSUPPORTED.items():
            if key.endswith(mark):
                raise ValueError(f"not supported: {what} (key {key}).")
        name, part = split_key(key)
        if not name:
            strays.append(key)
            continue
        if part in grouped.setdefault(name, {}):
            raise ValueError(f"{grouped[name][part]} and {key} are two tensors for the same part of one layer.")
        grouped[name][part] = key
    layers = {name: parts for name, parts in grouped.items() if parts.keys() != {ALPHA}}
    orphans = tuple(parts[ALPHA] for name, parts in grouped.items() if name not in layers)
    if not layers:
        raise ValueError(f"there are no slider layers in it. {_described(keys)}")
    if norm := next((key for key in strays if key.endswith("_norm.scale")), None):
        raise ValueError(
            "not supported: a control LoRA for Flux as Black Forest Labs publish them. It replaces norms and widens "
            f"the first layer (key {norm}), which has no strength, so it is no slider."
        )
    return GroupedKeys(layers, tuple(strays), orphans)


def read_layers(
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, PeftConfig] | None = None,
    encoder: str = "text_encoder",
    keys: GroupedKeys | None = None,
) -> tuple[dict[str, Change], FileReport]:
    """Read the layers of a state dict, by ComfyUI's names of them and with alpha / rank folded in, and a report.

    configs: PEFT configurations by the prefix of the layer names they are for. encoder: see `comfyui_names`.
    keys: the file's keys, if `tensors` has not all of them. What belongs to no layer is left out, and noted.
    Raises ValueError for parts that make no change.
    """
    keys = keys or group_keys(tensors)
    names = comfyui_names(keys.layers, encoder)
    layers: dict[str, Change] = {}
    first: dict[str, str] = {}
    alphas: list[float] = []
    without_alpha = 0
    for name, own in keys.layers.items():
        if names[name] in first:
            raise ValueError(f"{first[names[name]]} and {name} are two names of one layer.")
        first[names[name]] = name
        parts = {part: tensors[key] for part, key in own.items()}
        alpha = _alpha_of(name, parts, configs or {})
        if alpha is not None:
            alphas.append(alpha)
        change = layers[names[name]] = change_from(name, parts)
        without_alpha += alpha is None and (isinstance(change, LowRank) or change.kind.alpha_rank(change.parts) > 0)
    report = FileReport(
        kinds=Counter(kind_of(change) for change in layers.values()),
        ranks=tuple(sorted({change.rank for change in layers.values()} - {0})),
        alphas=tuple(sorted(set(alphas))),
        without_alpha=without_alpha,
        dtypes=tuple(sorted({str(tensors[k].dtype).removeprefix("torch.") for k in keys.used if tensors[k].ndim})),
        renamed={new: name for name, new in names.items() if name != new},
        notes=keys.notes,
    )
    return layers, report


def split_key(key: str) -> tuple[str, str]:
    """Split a key of a slider file into layer name and part; ("", "") if it belongs to no layer."""
    match = _PEFT_KEY.fullmatch(key)
    if match:
        part = _PEFT_PARTS.get((match["part"], match["end"] or "weight"))
        return (match["name"], part) if part else ("", "")
    if match := _USO_KEY.fullmatch(key):
        return match["name"], DOWN if match["part"] == "down" else UP
    for ending in _ENDINGS:
        if key.endswith(ending) and len(key) > len(ending):
            return key[: -len(ending)], _SPELLINGS[ending]
    return "", ""


def _alpha_of(name: str, parts: dict[str, Tensor], configs: Mapping[str, PeftConfig]) -> float | None:
    """Return the alpha that the file states for a layer; one of a PEFT configuration is added to the parts."""
    if ALPHA in parts:
        return parts[ALPHA].item() if parts[ALPHA].numel() == 1 and not parts[ALPHA].is_complex() else None
    config, module = config_of(name, configs)
    if config is None or DOWN not in parts or not parts[DOWN].ndim:
        return None
    rank = parts[DOWN].shape[0]
    parts[ALPHA] = torch.tensor(config.scale(module, rank) * rank, dtype=torch.float64)
    return config.alpha_of(module)


def _described(keys: tuple[str, ...]) -> str:
    return (
        f"Its {len(keys)} keys are of another kind, such as {', '.join(keys[:3]):.300}." if keys else "It is empty."
    )


def layer_tensors(
    name: str, change: Change, dtype: torch.dtype, spelling: str = "", with_alpha: bool = True
) -> dict[str, Tensor]:
    """Return a layer's tensors by their keys in a file, in a precision; alpha always in float32.

    spelling: "lora_down" or "lora_A" for low-rank changes, or "" for the one that goes with the name.
    with_alpha: True if a low-rank product states an alpha (equal to the rank, since the scale is folded in).
    Raises ValueError if a number overflows `dtype`, or the change has a scale that no tensors can have.
    """
    spelling = spelling or ("lora_A" if "." in name else "lora_down")
    if isinstance(change, LowRank):
        parts = {DOWN: change.down, UP: change.up, ALPHA: torch.tensor(float(change.rank))}
    else:
        parts = change.scaled_parts(name)
    if DOWN in parts and not with_alpha:
        parts = _without_alpha(parts)
    written = {}
    for part, tensor in parts.items():
        ending = part if spelling == "lora_down" else _IN_PEFT.get(part, part)
        if not with_alpha:
            ending = {BIAS: PEFT_BIAS, PEFT_MAGNITUDE: f"{PEFT_MAGNITUDE}.weight"}.get(part, ending)
        written[f"{name}.{ending}"] = _cast(name, tensor, torch.float32 if part == ALPHA else dtype)
    return written


_IN_PEFT = {DOWN: "lora_A.weight", UP: "lora_B.weight"}


def _without_alpha(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same low-rank change with alpha in its up-projection."""
    scale = parts[ALPHA].item() / parts[DOWN].shape[0] if ALPHA in parts else 1.0
    parts = {part: tensor for part, tensor in parts.items() if part != ALPHA}
    if scale != 1.0:
        parts[UP] = parts[UP].float() * scale
    return parts


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy of our own: safetensors refuses tensors that share memory
    cast = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(cast).all():
        raise ValueError(
            f"Layer {name}: numbers up to {tensor.abs().max().item():g} do not fit {dtype}; "
            "save as bfloat16 or float32."
        )
    return cast


def is_low_rank(change: Change) -> bool:
    """Return True if a change is a low-rank product, maybe with DoRA or a bias: all that diffusers and PEFT read."""
    return isinstance(change, LowRank) or (isinstance(change, Adapter) and DOWN in change.parts)
