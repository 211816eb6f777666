"""The early stop: it ends a run when the slider's effect has stopped growing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.errors import RECOVERABLE_ERRORS, describe_error, is_out_of_memory
from .previews import PreviewSampler

log = logging.getLogger(__name__)

Embed = Callable[[Tensor], Tensor]  # (N, C, ...) clean latents -> (N, E)


class EarlyStop:
    """Measures a slider's effect every `EVERY` steps, and says when it has stopped growing.

    The effect is how far predicted images lie apart between strength -1 and +1: the cosine distance of their
    embeddings if there is `embed`, else their difference relative to their size. After `patience` evaluations in a
    row without growth of `GROWTH` the slider has converged. Below `ROUNDING` an effect cannot be told from the
    model's rounding, and does not count as growth. Evaluations come at fixed steps, so that a run ends at the same
    step on any machine. One that fails, for want of memory say, is the last; the run goes on to its last step.

    patience: 0 for no early stop.
    """

    EVERY = 20
    GROWTH = 0.02
    ROUNDING = 1e-5  # a frozen model in float32 differs by some 4e-7; a slider with a visible effect has 1e-2

    def __init__(self, sampler: PreviewSampler, patience: int, embed: Embed | None = None):
        self.sampler, self.patience, self.embed = sampler, patience, embed
        self.effects: list[float] = []
        self._failed = False
        self.problem = ""  # why it has given up, for the user

    def evaluate(self, step: int) -> None:
        """Measure the effect, if an evaluation is due after this step or was interrupted before it."""
        if not self.patience or self._failed or len(self.effects) >= step // self.EVERY:
            return
        try:
            self.effects.append(self.effect())
        except RECOVERABLE_ERRORS as error:
            self._failed = True
            number = len(self.effects) + 1
            no_memory = is_out_of_memory(error)
            why = "there is no memory for its evaluations" if no_memory else f"evaluation {number} failed"
            self.problem = f"Training goes on without an early stop: {why} ({describe_error(error)})"
            log.warning(self.problem)

    @property
    def has_converged(self) -> bool:
        """True if the last `patience` evaluations have shown no growth."""
        if not self.patience or self._failed or len(self.effects) <= self.patience:
            return False
        best = max(self.effects[: -self.patience])
        return max(self.effects[-self.patience :]) < max(best * (1 + self.GROWTH), self.ROUNDING)

    def effect(self) -> float:
        """Return the slider's effect now: 0 for one that does nothing."""
        less, more = self.sampler.predict((-1.0, 1.0)).float()
        if self.embed is None:
            return float((more - less).norm() / less.norm().clamp(min=1e-6))
        with torch.no_grad():
            one, other = (self.embed(latents).float() for latents in (less, more))
            return float((1 - torch.cosine_similarity(one, other, dim=-1)).mean())

    def state(self) -> dict[str, Any]:
        return {"effects": list(self.effects), "failed": self._failed}

    def restore(self, state: dict[str, Any]) -> None:
        self.effects, self._failed = list(state["effects"]), state["failed"]
