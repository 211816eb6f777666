"""The early stop: how far a slider reaches by now, and when it has stopped to reach further."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.errors import RECOVERABLE_ERRORS, describe_error, is_out_of_memory
from ..comfy_host.preview_budget import Looks
from .previews import PreviewSampler

Embed = Callable[[Tensor], Tensor]  # (N, C, ...) clean latents -> (N, E)


class EarlyStop:
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
        half_done: PreviewSampler,
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
        except RECOVERABLE_ERRORS as error:
            self._can_look = False
            why = (
                "there is no memory for its looks"
                if is_out_of_memory(error)
                else f"look {len(self.measured) + 1} failed"
            )
            logging.warning("Training goes on without an early stop: %s (%s)", why, describe_error(error))
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
