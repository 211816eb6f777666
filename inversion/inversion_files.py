"""Inversion files: one safetensors file each, with the latents, the embeddings and what they hold for."""

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

from ..sliders.formats.atomic_write import write_whole
from .inversion import Inversion
from .settings import InversionSettings

_FORMAT, _VERSION = "concept_sliders.inversion", 2
_OPTION, _POSITIVE = "option.", "positive."  # how tensors beside the two prompts' words begin
_LIST = "tensors"  # says in the header how many tensors an option is a list of
_PLAIN = (str, int, float, bool, type(None))


def save_inversion(inversion: Inversion, path: str | os.PathLike) -> None:
    """Write an inversion, whole or not at all.

    Raises ValueError if a prompt says something that a file cannot hold, OSError if it cannot be written.
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
    tensors["positive"], beside = inversion.positive
    try:
        plain = _apart(inversion.options, _OPTION, tensors)
        of_positive = _apart(beside, _POSITIVE, tensors)
    except TypeError as error:
        raise ValueError(f"Cannot write the inversion to {path}: {error}.") from error
    about = {
        "version": _VERSION,
        "recipe": inversion.settings.as_dict(),
        "family": inversion.family,
        "fingerprint": inversion.fingerprint,
        "prediction": inversion.prediction,
        "windows": inversion.windows,
        "done": inversion.done,
        "losses": inversion.losses,
        "options": plain,
        "positive": of_positive,
    }
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, contiguous, {_FORMAT: json.dumps(about)}, "inversion")


def _apart(options: Mapping[str, Any], begin: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What of a prompt's options is no tensor; those, and lists of them, are put among `tensors`.

    Raises TypeError for anything else.
    """
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            tensors[begin + name] = value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(each, Tensor) for each in value):
            tensors |= {f"{begin}{name}.{at}": each for at, each in enumerate(value)}
            plain[name] = {_LIST: len(value)}
        elif isinstance(value, _PLAIN):
            plain[name] = value
        else:
            raise TypeError(
                f"a prompt holds {name!r}, a {type(value).__name__}; a file takes tensors, numbers and texts"
            )
    return plain


def _together(plain: Mapping[str, Any], begin: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options again."""
    lists = {name: value[_LIST] for name, value in plain.items() if isinstance(value, dict)}
    members = {f"{begin}{name}.{at}" for name, count in lists.items() for at in range(count)}
    of_tensors = {
        key.removeprefix(begin): tensor
        for key, tensor in tensors.items()
        if key.startswith(begin) and key not in members
    }
    of_lists = {name: [tensors[f"{begin}{name}.{at}"] for at in range(count)] for name, count in lists.items()}
    return {**plain, **of_tensors, **of_lists}


def load_inversion(path: str | os.PathLike) -> Inversion:
    """Read an inversion.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no inversion file at {path}.")
    tensors, header = _content(path)
    if _FORMAT not in header:
        raise ValueError(f"{path} is no inversion: it was not written by Save Inversion.")
    try:
        about = json.loads(header[_FORMAT])
        if about["version"] != _VERSION:
            raise ValueError(f"it is of version {about['version']!r}; this pack reads {_VERSION}")
        found = _inversion(tensors, about)
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged, or no inversion: {told}.") from error
    return found


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, LookupError, TypeError, struct.error, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _inversion(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Inversion:
    return Inversion(
        noise=tensors["noise"],
        clean=tensors["clean"],
        sigmas=tensors["sigmas"],
        embeddings=tensors["embeddings"],
        pooled=tensors.get("pooled"),
        options=_together(about["options"], _OPTION, tensors),
        positive=(tensors["positive"], _together(about["positive"], _POSITIVE, tensors)),
        windows=tuple((float(start), float(end)) for start, end in about["windows"]),
        settings=InversionSettings(**about["recipe"]),
        family=str(about["family"]),
        fingerprint=str(about["fingerprint"]),
        prediction=str(about["prediction"]),
        done=int(about["done"]),
        losses=tuple((float(first), float(last)) for first, last in about["losses"]),
        error=tensors["error"],
    )


def _check(found: Inversion) -> None:
    """Raises ValueError for parts that do not belong together."""
    steps, pictures = found.steps, found.pictures
    parts = [found.embeddings, *([found.pooled] if found.pooled is not None else [])]
    fits = (
        found.sigmas.ndim == 1
        and steps == len(found.windows)
        and found.noise.shape == found.clean.shape
        and found.error.shape == (pictures,)
        and 0 <= found.done <= steps
        and all(part.ndim > 2 and len(part) in (1, steps) and part.shape[1] in (1, pictures) for part in parts)
    )
    if not fits:
        shapes = {name: tuple(getattr(found, name).shape) for name in ("noise", "clean", "sigmas", "embeddings")}
        raise ValueError(f"its parts do not belong together: {shapes}, {len(found.windows)} windows")
    finite = (found.noise, found.clean, found.sigmas, found.positive[0], *parts)
    if not all(torch.isfinite(tensor).all() for tensor in finite):
        raise ValueError("it holds numbers that are not finite")
