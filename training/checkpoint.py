"""Files that a run can be continued from, written whole or not at all."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from ..sliders.formats.atomic_write import written_whole

_VERSION = 2
_LONGEST = 150  # bytes of a name: with what is added to it, less than the 255 that file systems take


def file_for(folder: Path, name: str, digest: str) -> Path:
    """Where the run with this name and digest is kept; the digest tells runs apart whose names begin alike."""
    return folder / f"{plain_name(name)} {digest}.pt"


def plain_name(name: str) -> str:
    """The name with what file names may not hold replaced, and cut where it is too long for one."""
    plain = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
    return plain.encode()[:_LONGEST].decode(errors="ignore")


def is_another_kept(folder: Path, name: str, digest: str) -> bool:
    """Whether a run with this name and another digest is kept in the folder."""
    others = re.compile(rf"{re.escape(plain_name(name))} (?!{digest})[0-9a-f]{{{len(digest)}}}( \d+ steps)?")
    return any(others.fullmatch(file.stem) for file in folder.glob("*.pt"))


def store(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, whole or not at all. Raises OSError if it cannot be written."""
    with written_whole(path) as partial:
        try:
            torch.save({"version": _VERSION, "state": state}, partial)
        except RuntimeError as error:  # torch's own writer has no other class for a disk that is full
            raise OSError(f"not all of it could be written, as on a full disk: {error}") from error


def restored(path: Path) -> dict[str, Any] | None:
    """The state in a file, or None where there is no file.

    No code in it is run. Raises ValueError naming the file if it is damaged.
    """
    if not path.exists():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"The checkpoint {path} cannot be read ({error}). Delete it to begin anew.") from error
    if not isinstance(kept, dict) or kept.get("version") != _VERSION or "state" not in kept:
        raise ValueError(f"{path} is not a checkpoint of this version. Delete it to begin anew.")
    return kept["state"]
