"""Slider files: safetensors with a header that describes the slider, and every LoRA layout in the wild.

What a file's keys mean is told in `keys`; here files are read from the disk, safely, and written to it.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..changes import Change
from ..slider import Slider
from .atomic_write import write_safetensors
from .keys import FileReport, GroupedKeys, group_keys, layer_tensors, read_layers
from .metadata import info_from_header, name_from_header, write_header
from .peft import configs_for, unknown_alpha

log = logging.getLogger(__name__)

_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ENCODER_FOLDERS = ("text_encoder_2", "text_encoder_3")
SAFE = (".safetensors", ".sft")  # two endings of one format
_LONGEST_HEADER = 100_000_000  # bytes, by the format's definition
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
_Content = tuple[GroupedKeys, dict[str, Tensor], dict[str, str]]  # a file's keys, tensors and header
LayerTensors = Callable[[str, Change, torch.dtype], Mapping[str, Tensor]]


def save_slider(
    slider: Slider,
    path: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
    to_tensors: LayerTensors = layer_tensors,
) -> None:
    """Write a slider as safetensors, whole or not at all.

    Layers with underscored names ("lora_unet_...") are written as `lora_down`, `lora_up`; dotted ones
    ("diffusion_model...", "transformer...") as `lora_A`, `lora_B`; other kinds of change by the endings that the
    ComfyUI's loader reads. Alpha is written equal to the rank: the scale is then 1, and a tool that loses alpha
    changes nothing.
    to_tensors: the function that gives a layer's tensors by their keys in the file.
    Raises ValueError if a weight overflows `dtype` or a change cannot be written at its strength, OSError if the
    file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in slider.layers.items():
        tensors.update(to_tensors(name, layer, dtype))
    write_safetensors(path, tensors, write_header(slider), "slider")


def load_slider(path: str | os.PathLike) -> Slider:
    """Read a slider from .safetensors, from a .pt, .bin or .ckpt of plain tensors, or from a PEFT adapter's folder.

    A safetensors file with one of the other endings is read as what it is. The name comes from the header, or from
    the file's name. Layers keep the names they have in the file, except where ComfyUI's loader knows them by others
    only.
    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    return read_slider(path)[0]


def read_slider(path: str | os.PathLike) -> tuple[Slider, FileReport]:
    """Read a slider, as `load_slider` does, with a report of what is in its file."""
    path = _file_at(Path(path))
    keys, tensors, header = (_read_safetensors if _is_safetensors(path) else _read_pickle)(path)
    folder = path.parent.name
    try:
        info = info_from_header(header, str(path))
        configs = configs_for(path, header)
        encoder = folder if folder in _ENCODER_FOLDERS else "text_encoder"
        layers, report = read_layers(tensors, configs, encoder, keys)
        name = name_from_header(header, folder if path.name in _PEFT_FILES else path.stem)
        slider = Slider(name, layers, replace(info, names_in_file=report.renamed))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if report.without_alpha and (note := unknown_alpha(path, keys.layers, configs)):
        report = replace(report, notes=(*report.notes, note))
    for note in report.notes:
        log.warning("%s: %s", path, note)
    return slider, report


def _file_at(path: Path) -> Path:
    if path.is_dir():
        inside = next((path / name for name in _PEFT_FILES if (path / name).is_file()), None)
        if inside is None:
            raise FileNotFoundError(f"{path} is a folder, and no PEFT adapter: it has no {' or '.join(_PEFT_FILES)}.")
        return inside
    if not path.is_file():
        raise FileNotFoundError(f"There is no slider file at {path}.")
    return path


def _is_safetensors(path: Path) -> bool:
    """Return True if a file is a safetensors file by its ending, or begins as one under another ending."""
    if path.suffix.lower() in SAFE:
        return True
    with path.open("rb") as file:
        length, header = file.read(8), file.read(1)
    return header == b"{" and int.from_bytes(length, "little") <= _LONGEST_HEADER


def _read_safetensors(path: Path) -> _Content:
    try:
        with safe_open(path, framework="np") as file:  # for torch it would map the whole file for writing
            if (name := repeated_in_header(path)) is not None:
                raise ValueError(f"{path} is damaged: it has {name!r:.200} twice.")
            keys = _slider_keys(path, file.keys())
        with safe_open(path, framework="pt") as file:
            return keys, {key: file.get_tensor(key) for key in keys.used}, file.metadata() or {}
    except (SafetensorError, RuntimeError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _slider_keys(path: Path, keys: Iterable[str]) -> GroupedKeys:
    """Group keys before a tensor is read: a checkpoint among the sliders would fill the memory."""
    try:
        return group_keys(keys)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def repeated_in_header(path: Path) -> str | None:
    """Return the first name that a safetensors file's header has twice, at any depth; None if there is none.

    Readers keep one of several entries of one name, and which one is their own affair: two tools would turn the same
    file into two sliders.
    """
    repeated: list[str] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and not repeated:
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    repeated.append(name)
                    break
                seen.add(name)
        return found

    with path.open("rb") as file:  # the library has checked the length by now
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=noted)
    return repeated[0] if repeated else None


def _read_pickle(path: Path) -> _Content:
    if zipfile.is_zipfile(path):  # its tensors stay on the disk until it is known to be a slider
        _slider_keys(path, map(_as_text, _state_in(path, mmap=True)))
    state = _state_in(path)
    keys = _slider_keys(path, map(_as_text, state))
    return keys, {key: _plain_tensor(path, key, state[key]) for key in keys.used}, {}


def _as_text(key: Any) -> str:
    return key if isinstance(key, str) else repr(key)


def _state_in(path: Path, mmap: bool = False) -> Mapping[Any, Any]:
    """Unpickle a state dict without running code in it. mmap: leave the tensors on the disk until they are used."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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
    return content


def _plain_tensor(path: Path, key: str, value: Any) -> Tensor:
    """Return an entry of a pickle as an ordinary tensor of its own memory; alpha may be a plain number."""
    if key.endswith(".alpha") and type(value) in (int, float):
        return torch.tensor(float(value))
    if not isinstance(value, Tensor):
        raise ValueError(f"{path} holds {key!r:.200}, which is no tensor but a {type(value).__name__}.")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    # A tensor may claim any size over a few bytes, by strides of zero; computing with it would take that size
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: {key!r:.200} is not an ordinary tensor of shape {tuple(value.shape)}.")
    return value.detach()
