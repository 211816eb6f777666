"""Inversion files: one safetensors file each, with the latents, the embeddings and what they are valid for."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..sliders.formats.atomic_write import write_safetensors
from .inversion import Inversion
from .settings import InversionSettings

_FORMAT, _VERSION = "concept_sliders.inversion", 2
_OPTION, _POSITIVE = "option.", "positive."  # prefixes of the tensors among the options of the two prompts
_LIST = "tensors"  # key in the header: the option is a list of so many tensors
_PLAIN = (str, int, float, bool, type(None))


def save_inversion(inversion: Inversion, path: str | os.PathLike) -> None:
    """Writes an inversion, all of it or nothing.

    Raises ValueError if a prompt has an option that a file cannot hold, OSError if it cannot be written.
    """
    tensors = {
        "noise": inversion.noise,
        "clean": inversion.clean,
        "sigmas": inversion.sigmas,
        "embeddings": inversion.embeddings,
        "error": inversion.error,
    }
    if inversion.pooled is not None:
        tensors["pooled"] = inversion.pooled
    tensors["positive"], positive_options = inversion.positive
    try:
        plain_options = _split_options(inversion.options, _OPTION, tensors)
        plain_positive = _split_options(positive_options, _POSITIVE, tensors)
    except TypeError as error:
        raise ValueError(f"Cannot write the inversion to {path}: {error}.") from error
    header = {
        "version": _VERSION,
        "recipe": inversion.settings.as_dict(),
        "family": inversion.family,
        "fingerprint": inversion.weights_hash,
        "prediction": inversion.prediction,
        "windows": inversion.windows,
        "done": inversion.done,
        "losses": inversion.losses,
        "options": plain_options,
        "positive": plain_positive,
    }
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_safetensors(path, contiguous, {_FORMAT: json.dumps(header)}, "inversion")


def _split_options(options: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Puts the tensors of a prompt's options, and lists of them, among `tensors`; returns the rest, for the header.

    Raises TypeError for values that are neither tensors nor plain.
    """
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
            tensors |= {f"{prefix}{name}.{at}": each for at, each in enumerate(value)}
            plain[name] = {_LIST: len(value)}
        elif isinstance(value, _PLAIN):
            plain[name] = value
        else:
            raise TypeError(
                f"a prompt holds {name!r}, a {type(value).__name__}; a file takes tensors, numbers and texts"
            )
    return plain


def _join_options(plain: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the options that `_split_options` was given, from the header's part and the tensors of the file."""
    lists = {name: value[_LIST] for name, value in plain.items() if isinstance(value, dict)}
    members = {f"{prefix}{name}.{at}" for name, count in lists.items() for at in range(count)}
    of_tensors = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix) and key not in members
    }
    of_lists = {name: [tensors[f"{prefix}{name}.{at}"] for at in range(count)] for name, count in lists.items()}
    return {**plain, **of_tensors, **of_lists}


def load_inversion(path: str | os.PathLike) -> Inversion:
    """Reads an inversion.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no inversion file at {path}.")
    tensors, metadata = _content(path)
    if _FORMAT not in metadata:
        raise ValueError(f"{path} is no inversion: it was not written by Save Inversion.")
    try:
        header = json.loads(metadata[_FORMAT])
        if header["version"] != _VERSION:
            raise ValueError(f"it is of version {header['version']!r}; this pack reads {_VERSION}")
        inversion = _inversion(tensors, header)
        _check(inversion)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged, or no inversion: {reason}.") from error
    return inversion


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns all tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, LookupError, TypeError, struct.error, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _inversion(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Inversion:
    return Inversion(
        noise=tensors["noise"],
        clean=tensors["clean"],
        sigmas=tensors["sigmas"],
        embeddings=tensors["embeddings"],
        pooled=tensors.get("pooled"),
        options=_join_options(header["options"], _OPTION, tensors),
        positive=(tensors["positive"], _join_options(header["positive"], _POSITIVE, tensors)),
        windows=tuple((float(start), float(end)) for start, end in header["windows"]),
        settings=InversionSettings(**header["recipe"]),
        family=str(header["family"]),
        weights_hash=str(header["fingerprint"]),
        prediction=str(header["prediction"]),
        done=int(header["done"]),
        losses=tuple((float(first), float(last)) for first, last in header["losses"]),
        error=tensors["error"],
    )


def _check(found: Inversion) -> None:
    """Raises ValueError if the parts of an inversion do not fit each other or are not finite."""
    steps, images = found.steps, found.images
    parts = [found.embeddings, *([found.pooled] if found.pooled is not None else [])]
    fits = (
        found.sigmas.ndim == 1
        and steps == len(found.windows)
        and found.noise.shape == found.clean.shape
        and found.error.shape == (images,)
        and 0 <= found.done <= steps
        and all(part.ndim > 2 and len(part) in (1, steps) and part.shape[1] in (1, images) for part in parts)
    )
    if not fits:
        shapes = {name: tuple(getattr(found, name).shape) for name in ("noise", "clean", "sigmas", "embeddings")}
        raise ValueError(f"its parts do not belong together: {shapes}, {len(found.windows)} windows")
    finite = (found.noise, found.clean, found.sigmas, found.positive[0], *parts)
    if not all(torch.isfinite(tensor).all() for tensor in finite):
        raise ValueError("it holds numbers that are not finite")
