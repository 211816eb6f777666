"""What one training step learns from, and where such samples come from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from .objectives import prediction_loss

if TYPE_CHECKING:
    from ..comfy_host.predictor import ActingLayers

log = logging.getLogger(__name__)


class Lesson(Protocol):
    """One thing to learn, from the prediction at (x, sigma, prompt) with the sliders at `strengths`.

    x: (B, C, ...). sigma: a scalar. strengths: (B, sliders).
    """

    @property
    def x(self) -> Tensor: ...

    @property
    def sigma(self) -> Tensor: ...

    @property
    def strengths(self) -> Tensor: ...

    @property
    def prompt(self) -> str: ...

    def loss(self, prediction: Tensor, entries: Tensor) -> Tensor:
        """Return the mean loss of some batch entries (indices) with the prediction at these, a scalar.

        prediction: (len(entries), C, ...), in the linear form d = (x - denoised) / sigma.
        """
        ...


@dataclass(frozen=True)
class Sample:
    """A lesson whose prediction is known: at (x, sigma), with the slider at `strengths`, it is `target` at `prompt`.

    x, target: (B, C, ...), the target in the linear form d = (x - denoised) / sigma. sigma: a scalar.
    strengths: (B, 1), of the slider. mask: where the loss counts, in [0, 1], broadcast to x; None is everywhere.
    weight: how much it counts beside others, above 0.
    """

    x: Tensor
    sigma: Tensor
    target: Tensor
    strengths: Tensor
    prompt: str
    mask: Tensor | None = None
    weight: float = 1.0

    def loss(self, prediction: Tensor, entries: Tensor) -> Tensor:
        """The mean squared error, see `prediction_loss`, times the weight."""
        mask = self.mask[entries] if self.mask is not None and len(self.mask) > 1 else self.mask
        return self.weight * prediction_loss(prediction, self.target[entries], mask)


class Warnings(list[str]):
    """What the user should know of what a run learns from, as sentences, each of which is logged as it comes."""

    def add(self, text: str) -> None:
        """Add a sentence that is not there yet."""
        if text not in self:
            self.append(text)
            log.warning("Training: %s", text)


class SampleSource(Protocol):
    """An endless source of what to learn from. All its randomness comes from one generator, which its owner keeps.

    state, restore: what it holds beside the generator, as tensors and plain values, so that a run can be continued.
    """

    def __next__(self) -> Lesson: ...

    def held_out(self) -> list[Sample]:
        """Return samples to measure the slider on: at seeds and sigmas not trained on, each at one strength, +1 or
        -1. They are the same at every call, and leave the state and the generator as they are.
        """
        return []

    def moves(self) -> Callable[[ActingLayers, float], float] | None:
        """Return what tells how far a slider moves images at so many times its strength, see `strength_fit`; None to
        leave it as strong as it was trained.
        """
        return None

    def record(self) -> dict[str, Any]:
        """Return what it has chosen by itself, for the slider's header: some of `recipe.RunRecord`."""
        return {}

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...
