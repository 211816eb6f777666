"""Captions that name every attribute: how well samples follow them, and those that follow them worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from ..world.portrait import BINARY, CONTINUOUS, STYLES, Portrait
from .figures import correlation
from .probe import Readings
from .prompts import degrees_of
from .sheet import captioned, stacked

MISSED = ("eye_size", "hair_length", "glasses", "hat")  # what samples miss most often


@dataclass(frozen=True)
class Adherence:
    """people: whom the captions describe. images: (N, 128, 128, 3) in [0, 1], made of them. readings: of these."""

    people: list[Portrait]
    images: Tensor
    readings: Readings

    def figures(self) -> dict[str, float]:
        """Of each degree its correlation with what was read; of the rest the share that is right."""
        figures = {name: correlation(self._read(name), self._named(name)) for name in CONTINUOUS}
        figures |= {name: (self._read(name) == self._named(name)).float().mean().item() for name in BINARY}
        styles = torch.tensor([STYLES.index(person.style) for person in self.people])
        figures["style"] = (self.readings["style"].argmax(1) == styles).float().mean().item()
        return figures

    def furthest(self, column: str, count: int) -> list[int]:
        """Indices of the samples whose reading is furthest from what their captions name, the furthest first.

        Those that are right are left out, so that there may be fewer.
        """
        apart = (self._read(column) - self._named(column)).abs()
        return [index for index in apart.argsort(descending=True).tolist()[:count] if apart[index] > 0]

    def sheet(self, drawings: Tensor, columns: Sequence[str] = MISSED, count: int = 8) -> Image:
        """Draw the samples furthest from their captions above drawings of the same. drawings: (N, 128, 128, 3)."""
        rows = []
        for column in columns:
            if not (indices := self.furthest(column, count)):
                continue
            told = [self._told(column, index) for index in indices]
            rows += [
                captioned(self.images[indices], told),
                captioned(drawings[indices], ["as a drawing"] * len(told)),
            ]
        return stacked(rows)

    def _told(self, column: str, index: int) -> str:
        named, read = self._named(column)[index].item(), self._read(column)[index].item()
        name = column.replace("_", " ")
        if column in CONTINUOUS:
            return f"{name} {named:.1f}: {read:.2f}"
        return f"{'' if named else 'no '}{name}: {'one' if read else 'none'}"

    def _named(self, column: str) -> Tensor:
        if column in CONTINUOUS:
            return torch.tensor(degrees_of(self.people, column))
        return torch.tensor([float(getattr(person, column)) for person in self.people])

    def _read(self, column: str) -> Tensor:
        readings = self.readings[column]
        return readings if column in CONTINUOUS else (readings > 0.5).float()
