"""What directions learn from: the samples' own steps, one slider a batch entry, all sliders in every lesson."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..training.samples import SampleSource
from .objective import direction_loss
from .trajectories import Embed, Trajectories, clean_latents


@dataclass(frozen=True)
class DirectionLesson:
    """At (x, sigma, prompt), with one slider in each batch entry, the embedding is to move along that slider's own.

    x: (K, C, ...). strengths: (K, K), diagonal. before: (K, D), the embeddings of what the bare model predicts there,
    kept since the samples were made. directions: (K, D), with the signs of the strengths. embed: of clean latents.
    """

    x: Tensor
    sigma: Tensor
    strengths: Tensor
    prompt: str
    before: Tensor
    directions: Tensor
    embed: Embed

    def loss(self, prediction: Tensor, entries: Tensor) -> Tensor:
        """The mean of `direction_loss` over these entries."""
        moved = self.embed(clean_latents(self.x[entries], self.sigma, prediction))
        return direction_loss(moved, self.before[entries], self.directions[entries]).mean()


class DirectionLessons(SampleSource):
    """Endless lessons. Each takes one step of one prompt's trajectories; each slider looks at another trajectory.

    trajectories: of every prompt. directions: (K, D). part: of sampling that is trained on, as fractions from its
    start. both_signs: strength -1 is trained along the opposite direction.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectories],
        directions: Tensor,
        embed: Embed,
        part: tuple[float, float],
        both_signs: bool,
        generator: torch.Generator,
    ):
        self.trajectories, self.directions, self.embed = trajectories, directions, embed
        self.both_signs, self.generator = both_signs, generator
        steps = len(trajectories[0].sigmas)
        start, end = (round(share * steps) for share in part)
        self._steps = range(start, max(end, start + 1))

    def __next__(self) -> DirectionLesson:
        of, device, count = self._one_of(self.trajectories), self.directions.device, len(self.directions)
        step = self._one_of(self._steps)
        chosen = torch.randint(len(of), (count,), generator=self.generator)
        signs = torch.ones(count)
        if self.both_signs:
            signs = 2.0 * torch.randint(2, (count,), generator=self.generator) - 1
        signs = signs.to(device)
        return DirectionLesson(
            x=of.x[chosen, step].to(device),
            sigma=of.sigmas[step].to(device),
            strengths=torch.diag(signs),
            prompt=of.prompt,
            before=of.embeddings[chosen, step].to(device),
            directions=signs[:, None] * self.directions,
            embed=self.embed,
        )

    def state(self) -> dict[str, Any]:
        return {}  # the generator, which the training keeps, is all that changes

    def restore(self, state: dict[str, Any]) -> None: ...

    def _one_of(self, values: Sequence[Any]) -> Any:
        return values[int(torch.randint(len(values), (), generator=self.generator))]


def decoded_embedding(decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor]) -> Embed:
    """Return phi of predicted clean latents by way of their image, which gradients pass through."""
    return lambda clean: encode(decode(clean))
