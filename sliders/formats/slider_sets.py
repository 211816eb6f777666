"""Sets: sliders that belong together, in a folder of their own, a file each, in order."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ..slider import Slider
from .slider_files import save_slider


def save_set(sliders: Sequence[Slider], stems: Sequence[str], folder: Path, dtype: torch.dtype) -> list[Path]:
    """Write a slider a file into a folder that is not there yet: all of them, or nothing.

    stems: of the files' names; a number in front of each keeps their order. Raises what `save_slider` raises, and
    OSError if the folder cannot be made.
    """
    digits = max(2, len(str(len(sliders))))
    names = [f"{place:0{digits}} {stem}.safetensors" for place, stem in enumerate(stems, 1)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder.parent) as partial:
            whole = Path(partial) / "set"
            whole.mkdir()
            for slider, name in zip(sliders, names, strict=True):
                save_slider(slider, whole / name, dtype)
            whole.rename(folder)
    except OSError as error:
        raise OSError(f"Cannot write the set of sliders to {folder}: {error}") from error
    return [folder / name for name in names]
