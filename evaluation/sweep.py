"""A sweep that has been sampled: the images of a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..sliders.stack import Stack
from .sweep_plan import PlannedImage, SweepPlan


@dataclass(frozen=True)
class Sweep:
    """Holds the N images that were sampled of a plan.

    made: which they are, in the order of making them. thumbnails: (N, h, w, 3) in 0..1. cancelled: True if the run
    was; images of the plan are then missing.
    """

    plan: SweepPlan
    made: tuple[PlannedImage, ...]
    thumbnails: Tensor
    cancelled: bool = False

    def strengths(self, slider: int) -> tuple[float, ...]:
        """Return the strengths at which there is an image of a slider, in rising order, 0 among them."""
        return tuple(sorted({0.0, *(planned.strength for planned in self.made if planned.slider == slider)}))

    def row(self, original: PlannedImage, slider: int) -> list[PlannedImage]:
        """Return the images of an original's prompt and seed, one for each of `strengths`, made or not."""
        strengths = self.strengths(slider)
        return [PlannedImage(original.prompt, original.seed, slider, s) if s else original for s in strengths]

    def of(self, stack: Stack) -> Self:
        """Return the same images of the same sliders under other names."""
        return replace(self, plan=replace(self.plan, stack=stack))

    def end_to_end(self, slider: int, values: Tensor) -> Tensor | None:
        """Return the mean change of values, (N, D) of the images, from a slider's lowest strength to its highest.

        None if no prompt and seed has images at both.
        """
        at = {image: index for index, image in enumerate(self.made)}
        rows = [self.row(image, slider) for image in self.made if image.slider is None]
        ends = [(at[row[0]], at[row[-1]]) for row in rows if row[0] in at and row[-1] in at and len(row) > 1]
        return torch.stack([values[high] - values[low] for low, high in ends]).mean(0) if ends else None
