"""From the keys of a slider file to its layers, and back.

A key is a layer's name and the ending of one of its parts. Trainers spell both in their own ways; `naming` knows the
names, this module the endings, and `kinds` what the parts of a layer make together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .kinds import ALPHA, BIAS, DORA, DOWN, PARTS, PEFT_BIAS, PEFT_MAGNITUDE, UP, change_from, folded, kind_of
from .naming import host_names
from .peft import PeftConfig
from .slider import Adapted, Change, LowRank

_SPELLINGS = {
    **{f".{part}": part for part in PARTS if part not in (PEFT_BIAS, PEFT_MAGNITUDE)},
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
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
_UNSUPPORTED = {
    ".set_weight": "a replaced weight, as control LoRAs have it; it has no strength, so it is no slider",
    ".reshape_weight": "a change of a weight's shape, as control LoRAs have it; it is no slider",
    ".oft_diag": "OFT in an old layout",
}


@dataclass(frozen=True)
class FileReport:
    """What a slider file holds, as it is written there.

    kinds: how many layers there are of each kind of change. ranks, alphas: the different ones, in ascending order.
    without_alpha: how many low-rank layers have none, so that their scale is 1. dtypes: of the weights.
    renamed: how many layers got another name than the file's. notes: what else should be known.
    """

    kinds: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    without_alpha: int
    dtypes: tuple[str, ...]
    renamed: int
    notes: tuple[str, ...]


def layers_from(
    tensors: Mapping[str, Tensor], configs: Mapping[str, PeftConfig] | None = None, encoder: str = "text_encoder"
) -> tuple[dict[str, Change], FileReport]:
    """The layers of a state dict by the names the stock loader knows, with alpha / rank folded in, and a report.

    configs: PEFT configurations by the prefix of the layer names they are for. encoder: see `naming.host_names`.
    Raises ValueError for parts that make no change, and if any key would have to be left out.
    """
    grouped = _grouped(tensors)
    names = host_names(grouped, encoder)
    layers: dict[str, Change] = {}
    first: dict[str, str] = {}
    alphas: list[float] = []
    for name, parts in grouped.items():
        if names[name] in first:
            raise ValueError(f"{first[names[name]]} and {name} are two names of one layer.")
        first[names[name]] = name
        alpha = _alpha_of(name, parts, configs or {})
        if alpha is not None:
            alphas.append(alpha)
        layers[names[name]] = change_from(name, parts)
    report = FileReport(
        kinds=Counter(kind_of(change) for change in layers.values()),
        ranks=tuple(sorted({change.rank for change in layers.values()} - {0})),
        alphas=tuple(sorted(set(alphas))),
        without_alpha=len(layers) - len(alphas),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for k, t in tensors.items() if t.ndim})),
        renamed=sum(name != new for name, new in names.items()),
        notes=_notes(grouped, configs or {}),
    )
    return layers, report


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer, by the file's name of the layer. Raises ValueError if a key is of no layer."""
    grouped: dict[str, dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], str] = {}
    unknown = []
    for key, tensor in tensors.items():
        for mark, what in _UNSUPPORTED.items():
            if key.endswith(mark):
                raise ValueError(f"not supported: {what} (key {key}).")
        name, part = split_key(key)
        if not name:
            unknown.append(key)
            continue
        if (name, part) in keys:
            raise ValueError(f"{keys[name, part]} and {key} are two tensors for the same part of one layer.")
        keys[name, part] = key
        grouped.setdefault(name, {})[part] = tensor
    if not grouped:
        raise ValueError(f"there are no slider layers in it. {_described(tensors)}")
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its {len(tensors)} keys are of no slider layer, such as {unknown[0]!r:.200}."
        )
    return grouped


def split_key(key: str) -> tuple[str, str]:
    """(layer name, part) of a key in a slider file; ("", "") if it is none."""
    match = _PEFT_KEY.fullmatch(key)
    if match:
        part = _PEFT_PARTS.get((match["part"], match["end"] or "weight"))
        return (match["name"], part) if part else ("", "")
    for ending in _ENDINGS:
        if key.endswith(ending) and len(key) > len(ending):
            return key[: -len(ending)], _SPELLINGS[ending]
    return "", ""


def _alpha_of(name: str, parts: dict[str, Tensor], configs: Mapping[str, PeftConfig]) -> float | None:
    """The alpha that the file states for a layer; from a PEFT configuration it is added to the parts."""
    if ALPHA in parts:
        return parts[ALPHA].item() if parts[ALPHA].numel() == 1 and not parts[ALPHA].is_complex() else None
    prefix = next((prefix for prefix in configs if name.startswith(prefix)), None)
    if prefix is None or DOWN not in parts or not parts[DOWN].ndim:
        return None
    config, module, rank = configs[prefix], name.removeprefix(prefix), parts[DOWN].shape[0]
    parts[ALPHA] = torch.tensor(config.scale(module, rank) * rank, dtype=torch.float64)
    return config.alpha_of(module)


def _notes(names: Iterable[str], configs: Mapping[str, PeftConfig]) -> tuple[str, ...]:
    if any("base_model.model." in name for name in names) and not configs:
        return ("its alpha is not known, since no adapter_config.json lies beside it: the scale is taken to be 1",)
    return ()


def _described(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "It is empty."
    first = ", ".join(list(tensors)[:3])
    return f"Its {len(tensors)} keys are of another kind, such as {first:.300}."


def tensors_of(
    name: str, change: Change, dtype: torch.dtype, spelling: str = "", with_alpha: bool = True
) -> dict[str, Tensor]:
    """A layer's tensors by the keys of a file, in that precision; alpha always in float32.

    spelling: "lora_down" or "lora_A" for low-rank changes, or "" for the one that goes with the name.
    with_alpha: whether a low-rank product states an alpha (equal to the rank, since the scale is folded in).
    Raises ValueError if a number overflows `dtype`, or the change has a scale that no tensors can have.
    """
    spelling = spelling or ("lora_A" if "." in name else "lora_down")
    if isinstance(change, LowRank):
        parts = {DOWN: change.down, UP: change.up, ALPHA: torch.tensor(float(change.rank))}
    else:
        parts = folded(name, change)
    if DOWN in parts and not with_alpha:
        parts = _without_alpha(parts)
    written = {}
    for part, tensor in parts.items():
        ending = part if spelling == "lora_down" else _IN_PEFT.get(part, part)
        if not with_alpha:
            ending = {BIAS: PEFT_BIAS, DORA: f"{PEFT_MAGNITUDE}.weight"}.get(part, ending)
        written[f"{name}.{ending}"] = _cast(name, tensor, torch.float32 if part == ALPHA else dtype)
    return written


_IN_PEFT = {DOWN: "lora_A.weight", UP: "lora_B.weight"}


def _without_alpha(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same low-rank change with alpha in its up-projection; DoRA's magnitudes as diffusers has them."""
    scale = parts[ALPHA].item() / parts[DOWN].shape[0] if ALPHA in parts else 1.0
    parts = {part: tensor for part, tensor in parts.items() if part != ALPHA}
    if scale != 1.0:
        parts[UP] = parts[UP].float() * scale
    if DORA in parts and parts[DORA].shape[0] == parts[UP].shape[0] and parts[DOWN].ndim == 2:
        parts[DORA] = parts[DORA].flatten()
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
    """Whether a change is a low-rank product, if need be with DoRA or a bias: all that diffusers and PEFT read."""
    return isinstance(change, LowRank) or (isinstance(change, Adapted) and DOWN in change.parts)
