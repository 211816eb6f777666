"""Slider files: safetensors with a header that describes the slider, and every plain LoRA layout in the wild.

A file holds, for each layer, a down- and an up-projection and an optional alpha; its change of the layer's
weight is alpha / rank * up @ down, or up @ down without an alpha.
"""

from __future__ import annotations

import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .header import info_from_header, name_from_header, write_header
from .slider import LowRank, Slider, check_shapes

# (down, up) key endings. Longer endings come first where one ends in another.
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A", ".lora_B"),
)
_ALPHA = ".alpha"
# What torch.load raises for files that are cut off, are something else, or ask for more than tensors
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    struct.error,
    zipfile.BadZipFile,
)
_UNSUPPORTED = {
    ".lora_mid.weight": "a LoCon middle convolution",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w2": "LoKr",
    ".oft_blocks": "OFT or BOFT",
    ".oft_diag": "OFT",
    ".a1.weight": "GLoRA",
    ".reshape_weight": "a change of a weight's shape",
    ".diff": "a full weight difference",
    ".diff_b": "a bias difference",
    ".w_norm": "a norm difference",
    ".set_weight": "a replaced weight",
    ".lora_B.bias": "a LoRA with a bias",
}


def save_slider(slider: Slider, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """Write a slider as safetensors, whole or not at all.

    Layers with underscored names ("lora_unet_...") are written as `lora_down`, `lora_up`; dotted ones
    ("diffusion_model...", "transformer...") as `lora_A`, `lora_B`. Alpha is written equal to the rank: the
    scale is then 1, and a tool that loses alpha changes nothing.
    Raises ValueError if a weight overflows `dtype`, OSError if the file cannot be written.
    """
    path = Path(path)
    tensors = {}
    for name, layer in slider.layers.items():
        tensors.update(_layer_tensors(name, layer, dtype))
    # A name of its own beside the target, so that the rename stays within one file system
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=write_header(slider))
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Cannot write the slider to {path}: {error}. Is the folder writable?") from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made there is nothing to remove
            partial.unlink()


def load_slider(path: str | os.PathLike) -> Slider:
    """Read a slider from .safetensors, or from a .pt, .bin or .ckpt of plain tensors.

    The name comes from the header, or from the file's name. Layers keep the names they have in the file.
    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no slider file at {path}.")
    tensors, header = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    try:
        info = info_from_header(header, str(path))
        return Slider(name_from_header(header, path.stem), layers_from(tensors), info)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def layers_from(tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The low-rank layers of a state dict, by layer name, with alpha / rank folded into `up`.

    Raises ValueError for half a pair, shapes that do not fit, other kinds of change, and no layer at all.
    """
    _refuse_unsupported(tensors)
    layers, used = {}, set()
    for key in tensors:
        pair = _pair_of(key)
        if pair is None or key in used:
            continue
        name, down_key, up_key = pair
        for half, other in ((down_key, up_key), (up_key, down_key)):
            if half not in tensors:
                raise ValueError(f"layer {name} has {other} but no {half}; a slider layer needs both.")
        layers[name] = _fold(name, tensors[down_key], tensors[up_key], tensors.get(name + _ALPHA))
        used |= {down_key, up_key, name + _ALPHA}
    if not layers:
        raise ValueError(f"there are no slider layers in it. {_describe_keys(tensors)}")
    unknown = [key for key in tensors if key not in used]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its {len(tensors)} keys are of no slider layer, such as {unknown[0]}."
        )
    return layers


def _layer_tensors(name: str, layer: LowRank, dtype: torch.dtype) -> dict[str, Tensor]:
    ends = (".lora_A.weight", ".lora_B.weight") if "." in name else (".lora_down.weight", ".lora_up.weight")
    written = {}
    for end, tensor in zip(ends, (layer.down, layer.up), strict=True):
        # A copy of our own: safetensors refuses tensors that share memory
        cast = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if not torch.isfinite(cast).all():
            raise ValueError(
                f"Layer {name}: numbers up to {tensor.abs().max().item():g} do not fit {dtype}; "
                "save as bfloat16 or float32."
            )
        written[name + end] = cast
    written[name + _ALPHA] = torch.tensor(float(layer.rank), dtype=dtype)
    return written


def _fold(name: str, down: Tensor, up: Tensor, alpha: Tensor | None) -> LowRank:
    check_shapes(name, down, up)
    if alpha is None:
        return LowRank(down, up)
    if alpha.numel() != 1 or not torch.isfinite(alpha.float()).all():
        raise ValueError(f"layer {name}: alpha must be one finite number; got {alpha.tolist()}.")
    scale = alpha.item() / down.shape[0]
    if scale == 1.0:
        return LowRank(down, up)
    exact = up.float() * scale
    narrow = exact.to(up.dtype)
    # The file's precision is kept where that loses nothing, as with scales that are powers of two
    return LowRank(down, narrow if torch.equal(narrow.float(), exact) else exact)


def _pair_of(key: str) -> tuple[str, str, str] | None:
    """(layer name, down key, up key) of a projection's key, or None."""
    for down_end, up_end in _PAIRS:
        for end in (down_end, up_end):
            if key.endswith(end):
                name = key[: -len(end)]
                return name, name + down_end, name + up_end
    return None


def _refuse_unsupported(tensors: Mapping[str, Tensor]) -> None:
    for key in tensors:
        for mark, what in _UNSUPPORTED.items():
            if key.endswith(mark) or (mark.startswith((".lokr", ".hada", ".lora_magnitude")) and mark in key):
                raise ValueError(f"not supported yet: {what} (key {key}).")


def _describe_keys(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "It is empty."
    first = list(tensors)[:3]
    return f"Its {len(tensors)} keys are of another kind, such as {', '.join(first)}."


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is truncated or holds more than plain tensors; nothing in it was run: {error}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a slider's named tensors.")
    others = [
        key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        raise ValueError(f"{path} holds entries that are no tensors, such as {others[0]!r}.")
    return dict(content), {}
