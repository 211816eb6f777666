"""Slider files: safetensors with a header that describes the slider, and every LoRA layout in the wild.

What a file's keys mean is told in `formats`; here they are read from the disk, safely, and written to it.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .formats import FileReport, layers_from, tensors_of
from .header import info_from_header, name_from_header, write_header
from .peft import configs_for
from .slider import Change, Slider

_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ENCODER_FOLDERS = ("text_encoder_2", "text_encoder_3")
_DEEPEST = 4  # how often a "state_dict" may lie within another
# What torch.load raises for files that are cut off, are something else, or ask for more than tensors: its
# unpickler carries out a broken file's instructions as far as they go.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
    NotImplementedError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)
LayerTensors = Callable[[str, Change, torch.dtype], Mapping[str, Tensor]]


def save_slider(
    slider: Slider,
    path: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
    layer_tensors: LayerTensors = tensors_of,
) -> None:
    """Write a slider as safetensors, whole or not at all.

    Layers with underscored names ("lora_unet_...") are written as `lora_down`, `lora_up`; dotted ones
    ("diffusion_model...", "transformer...") as `lora_A`, `lora_B`; other kinds of change by the endings that the
    stock loader reads. Alpha is written equal to the rank: the scale is then 1, and a tool that loses alpha changes
    nothing.
    layer_tensors: another way to spell a layer's tensors.
    Raises ValueError if a weight overflows `dtype` or a change cannot be written at its strength, OSError if the
    file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for name, layer in slider.layers.items():
        tensors.update(layer_tensors(name, layer, dtype))
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
    """Read a slider from .safetensors, from a .pt, .bin or .ckpt of plain tensors, or from a PEFT adapter's folder.

    The name comes from the header, or from the file's name. Layers keep the names they have in the file, except
    where the stock loader knows them by others only.
    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    return read_slider(path)[0]


def read_slider(path: str | os.PathLike) -> tuple[Slider, FileReport]:
    """A slider, as `load_slider` reads it, and a report of what its file holds."""
    path = _file_at(Path(path))
    tensors, header = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    folder = path.parent.name
    try:
        info = info_from_header(header, str(path))
        encoder = folder if folder in _ENCODER_FOLDERS else "text_encoder"
        layers, report = layers_from(tensors, configs_for(path, header), encoder)
        name = name_from_header(header, folder if path.name in _PEFT_FILES else path.stem)
        return Slider(name, layers, info), report
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _file_at(path: Path) -> Path:
    if path.is_dir():
        inside = next((path / name for name in _PEFT_FILES if (path / name).is_file()), None)
        if inside is None:
            raise FileNotFoundError(f"{path} is a folder, and no PEFT adapter: it has no {' or '.join(_PEFT_FILES)}.")
        return inside
    if not path.is_file():
        raise FileNotFoundError(f"There is no slider file at {path}.")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            _refuse_repeated_names(path)
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, RuntimeError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _refuse_repeated_names(path: Path) -> None:
    """A JSON reader keeps one of several entries of one name, and which one is its own affair."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} is damaged: its header has {twice!r:.200} twice.")
        return found

    with path.open("rb") as file:  # the library has checked the length by now
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=checked)


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is truncated or holds more than plain tensors; nothing in it was run: {error}"
        ) from error
    for _ in range(_DEEPEST):
        inner = content.get("state_dict") if isinstance(content, Mapping) else None
        if not isinstance(inner, Mapping):
            break
        if beside := [key for key, value in content.items() if isinstance(value, Tensor)]:
            raise ValueError(f"{path} holds a state_dict and beside it the tensor {beside[0]!r:.200}.")
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a slider's named tensors.")
    return {key: _plain_tensor(path, key, value) for key, value in content.items()}, {}


def _plain_tensor(path: Path, key: Any, value: Any) -> Tensor:
    """An entry of a pickle as an ordinary tensor of its own memory; alpha may be a plain number."""
    if isinstance(key, str) and key.endswith(".alpha") and type(value) in (int, float):
        return torch.tensor(float(value))
    if not (isinstance(key, str) and isinstance(value, Tensor)):
        raise ValueError(f"{path} holds entries that are no tensors, such as {key!r:.200}.")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    # A tensor may claim any size over a few bytes, by strides of zero; computing with it would take that size
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: {key!r:.200} is not an ordinary tensor of shape {tuple(value.shape)}.")
    return value.detach()
