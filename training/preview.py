"""Quick looks at a slider while it learns, and how far it reaches by now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..sliders.memory import ran_out
from .failures import FAILURES, described

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .new_layers import NewLayers

LEVEL = 0.4  # of sampling: noisy enough to change, clear enough to see
STEPS = 20  # of that sampling
SHARE = 0.04  # of the time that looks take, at most
FIRST = 4  # training steps that a first look is taken to last: 11 forward passes, then the pictures are decoded

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


class Looks:
    """How much of a run's time looks take, and whether there is time for one more.

    at_most: that share, in (0, 1]. now: the time in seconds, from any start.
    """

    def __init__(self, at_most: float = SHARE, now: Callable[[], float] = time.monotonic):
        self.at_most, self._now, self._began = at_most, now, now()
        self._spent, self._last = 0.0, 0.0

    @property
    def share(self) -> float:
        """Of the time since the beginning, in [0, 1]."""
        return self._spent / max(self._now() - self._began, 1e-9)

    def has_time(self) -> bool:
        """Whether, after one more like the last, all looks together have taken no more than their share."""
        return self._spent + self._last <= self.at_most * (self._now() - self._began + self._last)

    def has_time_for_first(self, done: int, steps: int) -> bool:
        """Whether they will have done so by the end, if a look is taken now that nothing is known of yet.

        done: training steps since the beginning, 1 or more. steps: how many there will be at the end.
        """
        step = (self._now() - self._began - self._spent) / done
        looks = self._spent + FIRST * step
        return looks <= self.at_most * (steps * step + looks)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The block is a look. A device that works on by itself is waited for, before and after."""
        comfy.model_management.synchronize()
        began = self._now()
        try:
            yield
        finally:
            comfy.model_management.synchronize()
            self._last = self._now() - began
            self._spent += self._last


class Strip:
    """One latent at strength -1, 0 and +1, at intervals of `every` steps or more; 0 for never.

    As often as there is time for it: what becomes of the latents is part of the look. The first one comes early, if
    the run is long enough for it.
    begun: the step that the run goes on from. steps: the one that it ends with.
    """

    def __init__(self, half_done: HalfDone, looks: Looks, every: int, begun: int, steps: int):
        self.half_done, self.looks, self.every = half_done, looks, every
        self.begun, self.steps = begun, steps
        self._last = begun

    def is_due(self, step: int) -> bool:
        if not self.every or step - self._last < self.every:
            return False
        if self._last == self.begun:
            return self.looks.has_time_for_first(step - self.begun, self.steps - self.begun)
        return self.looks.has_time()

    def latents(self, step: int) -> Tensor:
        """(3, C, ...)."""
        self._last = step
        return self.half_done.at((-1.0, 0.0, 1.0))[:, 0]


class Reach:
    """Tells when a slider has stopped to reach further: the early stop of a run.

    Every `every` steps it measures how far foreseen images lie apart between strength -1 and +1: by the cosine
    distance of their embeddings if there is one, else by their own difference, relative to their size. After
    `patience` measurements in a row without growth of `GROWTH` the slider is done. Below `ROUNDING` nothing can be
    told apart from the rounding of the model, and is no growth. These looks come at fixed steps, whatever they cost,
    so that a run ends where it would end on any machine; previews wait until there is time again. One that fails,
    for want of memory say, is the last, and the run goes on to its last step.
    """

    GROWTH = 0.02
    ROUNDING = 1e-5  # a frozen model in float32 differs by some 4e-7; a slider that is seen reaches 1e-2

    def __init__(
        self,
        half_done: HalfDone,
        patience: int,
        every: int = 20,
        embed: Embed | None = None,
        looks: Looks | None = None,
    ):
        self.half_done, self.patience, self.every, self.embed = half_done, patience, every, embed
        self.looks = looks
        self.measured: list[float] = []
        self._can_look = True

    def is_reached(self, step: int) -> bool:
        """Asked after every step, and once more where the look after the last one was cut off."""
        if not self.patience or not self._can_look or len(self.measured) >= step // self.every:
            return False
        try:
            with self.looks.timed() if self.looks else nullcontext():
                self.measured.append(self.measure())
        except FAILURES as error:
            self._can_look = False
            why = "there is no memory for its looks" if ran_out(error) else f"look {len(self.measured) + 1} failed"
            logging.warning("Training goes on without an early stop: %s (%s)", why, described(error))
            return False
        best = max(self.measured[: -self.patience], default=0.0)
        enough = len(self.measured) > self.patience
        return enough and max(self.measured[-self.patience :]) < max(best * (1 + self.GROWTH), self.ROUNDING)

    @torch.no_grad()
    def measure(self) -> float:
        """The reach now: 0 for a slider that does nothing."""
        less, more = self.half_done.at((-1.0, 1.0)).float()
        if self.embed is None:
            return float((more - less).norm() / less.norm().clamp(min=1e-6))
        one, other = (self.embed(latents).float() for latents in (less, more))
        return float((1 - torch.cosine_similarity(one, other, dim=-1)).mean())

    def state(self) -> dict[str, Any]:
        return {"measured": list(self.measured), "can_look": self._can_look}

    def restore(self, state: dict[str, Any]) -> None:
        self.measured, self._can_look = list(state["measured"]), state.get("can_look", True)
