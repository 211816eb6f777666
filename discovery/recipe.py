"""What to discover, and how: a frozen, validated description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from ..training.recipe import Recipe

HEAD, DECODER = EMBEDDINGS = ("head", "decoder")
INDEPENDENT, PRINCIPAL = AXES = ("independent", "principal")


@dataclass(frozen=True, kw_only=True)
class DiscoveryRecipe(Recipe):
    """Sliders of what a model varies by itself (SliderSpace, arXiv 2502.01639).

    prompts: one, or several expansions of one; samples are taken of all alike.
    directions: how many; 0 proposes a number from the variance. samples: trajectories in all.
    axes: "principal" trains the principal components, as published; "independent" what varies by itself among them.
    sampling_steps, guidance, scheduler: of each; guidance 1 for few-step models.
    embedding: how a slider's change is embedded in training: "decoder" decodes and embeds it, "head" asks a small
        network fitted on the samples. head_steps: that it is fitted for.
    held_out: further trajectories, which neither the components nor the sliders see: they tell what each does.
    spread: how far strength 1 moves what is sampled, in standard deviations of what the model varies by itself.
    Of the fields of `Recipe`, rank is of each slider.
    """

    prompts: tuple[str, ...]
    directions: int = 0
    axes: str = AXES[0]
    samples: int = 256
    sampling_steps: int = 20
    guidance: float = 3.0
    scheduler: str = "simple"
    embedding: str = EMBEDDINGS[0]
    head_steps: int = 800
    held_out: int = 32
    spread: float = 1.0
    rank: int = 1

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._checks()
        yield "prompts", bool(self.prompts) and all(p.strip() for p in self.prompts), "one prompt or more, none empty"
        yield "directions", 0 <= self.directions <= 256, "1 to 256, or 0 for a number from the variance"
        yield "axes", self.axes in AXES, f"one of {', '.join(AXES)}"
        yield (
            "samples",
            self.samples > max(1, self.directions),
            f"more than the directions, {max(1, self.directions)}",
        )
        yield "sampling_steps", self.sampling_steps >= 1, "at least 1"
        yield "guidance", isfinite(self.guidance) and self.guidance >= 0, "0 or above"
        yield "embedding", self.embedding in EMBEDDINGS, f"one of {', '.join(EMBEDDINGS)}"
        yield "head_steps", self.head_steps >= 1, "at least 1"
        yield "held_out", self.held_out >= 2, "at least 2"
        yield "spread", isfinite(self.spread) and self.spread > 0, "a number above 0"
        yield "full_rank", not self.full_rank, "off: a direction is of low rank"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a slider's header."""
        return {"kind": "direction", **asdict(self)}

    @property
    def ends(self) -> tuple[str, str]:
        return "", ""
