"""A sweep that has been sampled: the images of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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
