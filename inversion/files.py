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

from ..sliders.writing import write_whole
from .inversion import Inversion
from .recipe import InversionRecipe

_FORMAT, _VERSION = "concept_sliders.inversion", 1
_OPTION = "option."  # how tensors among the options begin
_PLAIN = (str, int, float, bool, type(None))


def save_inversion(inversion: Inversion, path: str | os.PathLike) -> None:
    """Write an inversion, whole or not at all.

    Raises ValueError if the negative CONDITIONING says something that a file cannot hold, OSError if it cannot be
    written.
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
    plain: dict[str, Any] = {}
    for name, value in inversion.options.items():
        if isinstance(value, Tensor):
            tensors[_OPTION + name] = value
        elif isinstance(value, _PLAIN):
            plain[name] = value
        else:
            raise ValueError(
                f"Cannot write the inversion to {path}: its negative prompt holds {name!r}, a "
                f"{type(value).__name__}; a file takes tensors, numbers and texts."
            )
    about = {
        "version": _VERSION,
        "recipe": inversion.recipe.as_dict(),
        "family": inversion.family,
        "fingerprint": inversion.fingerprint,
        "windows": inversion.windows,
        "done": inversion.done,
        "losses": inversion.losses,
        "options": plain,
    }
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, contiguous, {_FORMAT: json.dumps(about)}, "inversion")


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
    options = dict(about["options"])
    options |= {name.removeprefix(_OPTION): t for name, t in tensors.items() if name.startswith(_OPTION)}
    return Inversion(
        noise=tensors["noise"],
        clean=tensors["clean"],
        sigmas=tensors["sigmas"],
        embeddings=tensors["embeddings"],
        pooled=tensors.get("pooled"),
        options=options,
        windows=tuple((float(start), float(end)) for start, end in about["windows"]),
        recipe=InversionRecipe(**about["recipe"]),
        family=str(about["family"]),
        fingerprint=str(about["fingerprint"]),
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
        and steps == found.recipe.steps == len(found.windows)
        and found.noise.shape == found.clean.shape
        and found.error.shape == (pictures,)
        and 0 <= found.done <= steps
        and all(part.ndim > 2 and len(part) in (1, steps) and part.shape[1] in (1, pictures) for part in parts)
    )
    if not fits:
        shapes = {name: tuple(getattr(found, name).shape) for name in ("noise", "clean", "sigmas", "embeddings")}
        raise ValueError(f"its parts do not belong together: {shapes}, {len(found.windows)} windows")
    if not all(torch.isfinite(tensor).all() for tensor in (found.noise, found.clean, found.sigmas, *parts)):
        raise ValueError("it holds numbers that are not finite")
