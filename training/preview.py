"""Quick looks at a slider while it learns, and how far it reaches by now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .new_layers import NewLayers

LEVEL = 0.4  # of sampling: noisy enough to change, clear enough to see
STEPS = 20  # of that sampling
SHARE = 0.04  # of the time that looks take, at most

Embed = Callable[[Tensor], Tensor]  # (N, C, ...) clean latents -> (N, E)


class HalfDone:
    """The same latents, denoised halfway by the frozen model, finished in one step at any strength.

    prompt: what they show. count: how many of them. seed: of their noise. shape: (C, ...) of a latent.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: NewLayers,
        prompt: str,
        shape: tuple[int, ...],
        seed: int,
        count: int = 1,
    ):
        self.denoiser, self.layers, self.prompt = denoiser, layers, prompt
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn((count, *shape), generator=generator).to(denoiser.device)
        self.sigmas = denoiser.sigmas(STEPS)
        self.level = int(LEVEL * STEPS)
        self._x: Tensor | None = None

    @torch.no_grad()
    def at(self, strengths: Sequence[float]) -> Tensor:
        """(len(strengths), count, C, ...) clean latents, as the model with the slider foresees them."""
        if self._x is None:
            self._x = self._half_done()
        x, sigma = self._x.repeat(len(strengths), *(1 for _ in self._x.shape[1:])), self.sigmas[self.level]
        by_entry = torch.tensor(strengths, device=x.device).repeat_interleave(len(self.noise)).view(1, -1, 1)
        clean = x - sigma * self.denoiser.ask(x, sigma, [self.prompt], self.layers, by_entry)[0]
        return clean.unflatten(0, (len(strengths), -1))

    def _half_done(self) -> Tensor:
        x = self.denoiser.scale_noise(self.sigmas[0], self.noise)
        for sigma, following in zip(self.sigmas[: self.level], self.sigmas[1 : self.level + 1]):
            x = x + (following - sigma) * self.denoiser.ask(x, sigma, [self.prompt])[0]
        return x


class Strip:
    """One latent at strength -1, 0 and +1, now and then."""

    def __init__(self, half_done: HalfDone):
        self.half_done = half_done
        self._not_before, self._last = 0.0, 0

    def when_due(self, step: int, every: int) -> Tensor | None:
        """(3, C, ...) at intervals of `every` steps or more, as often as takes no more than a small share of time."""
        if not every or step - self._last < every or time.monotonic() < self._not_before:
            return None
        began, self._last = time.monotonic(), step
        latents = self.half_done.at((-1.0, 0.0, 1.0))[:, 0]
        self._not_before = time.monotonic() + (time.monotonic() - began) / SHARE
        return latents


class Reach:
    """Tells when a slider has stopped to reach further: the early stop of a run.

    Every `every` steps it measures how far foreseen images lie apart between strength -1 and +1: by the cosine
    distance of their embeddings if there is one, else by their own difference, relative to their size. After
    `patience` measurements in a row without growth of `GROWTH` the slider is done.
    """

    GROWTH = 0.02

    def __init__(self, half_done: HalfDone, patience: int, every: int = 20, embed: Embed | None = None):
        self.half_done, self.patience, self.every, self.embed = half_done, patience, every, embed
        self.measured: list[float] = []

    def is_reached(self, step: int) -> bool:
        """Asked after every step."""
        if not self.patience or step % self.every:
            return False
        self.measured.append(self.measure())
        best = max(self.measured[: -self.patience], default=0.0)
        enough = len(self.measured) > self.patience
        return enough and max(self.measured[-self.patience :]) < best * (1 + self.GROWTH)

    @torch.no_grad()
    def measure(self) -> float:
        """The reach now: 0 for a slider that does nothing."""
        less, more = self.half_done.at((-1.0, 1.0)).float()
        if self.embed is None:
            return float((more - less).norm() / less.norm().clamp(min=1e-6))
        one, other = (self.embed(latents).float() for latents in (less, more))
        return float((1 - torch.cosine_similarity(one, other, dim=-1)).mean())

    def state(self) -> dict[str, Any]:
        return {"measured": list(self.measured)}

    def restore(self, state: dict[str, Any]) -> None:
        self.measured = list(state["measured"])
