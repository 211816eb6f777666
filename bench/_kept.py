"""Answers kept in a folder: what was worked out once is read the next time; a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.slider import Slider


class Kept:
    """Keeps one file for each question, by a hash of all that decides its answer."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, kind: str, question: Any, ending: str = "pt") -> Path:
        """Return the file of a question. question: plain values; what is none of JSON's counts by its text."""
        return self.folder / f"{kind}_{digest(question)}.{ending}"

    def __call__(self, kind: str, question: Any, answer: Callable[[], Any]) -> Any:
        """Return the answer, tensors and plain values, from the folder; where there is none yet, work it out."""
        path = self.path(kind, question)
        if not path.exists():
            found = answer()
            partial = path.with_suffix(".partial")
            torch.save(found, partial)
            partial.replace(path)
        return torch.load(path, weights_only=True)

    def slider(self, question: Any, train: Callable[[], Slider]) -> Slider:
        """Return a slider from the folder, as its file has it; where there is none yet, train it."""
        path = self.path("slider", question, "safetensors")
        if not path.exists():
            save_slider(train(), path)
        return load_slider(path)


def digest(question: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(question, default=str).encode()).hexdigest()[:16]
