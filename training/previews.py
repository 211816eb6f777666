"""Previews of a slider while it is being trained: the same image at strength -1, 0 and +1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..comfy_host.borrow import Loan
from ..comfy_host.errors import RECOVERABLE_ERRORS, describe_error
from ..comfy_host.latents import Shapes, image_part

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from .trainable_layers import TrainableLayers

log = logging.getLogger(__name__)

SAMPLING_STEPS = 20
FROZEN_STEPS = 8  # of these, by the frozen model: the image can still change, and its content shows
STRENGTHS = (-1.0, 0.0, 1.0)


class ShownStrengths(Protocol):
    """What a preview shows."""

    def predict(self, strengths: Sequence[float]) -> Tensor:
        """Return (N, count, C, ...) clean latents, as predicted at these strengths."""
        ...


class PreviewSampler:
    """Predicts what sampling with the slider would give, at little cost.

    The same latents are denoised part of the way by the frozen model, once, and finished in one step at any strength.

    prompt: what they show. shape: (C, ...) of a latent. seed: of their noise. count: how many there are.
    """

    def __init__(
        self,
        denoiser: DiffusionPredictor,
        layers: TrainableLayers,
        prompt: str,
        shape: tuple[int, ...],
        seed: int,
        count: int = 1,
    ):
        self.denoiser, self.layers, self.prompt = denoiser, layers, prompt
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn((count, *shape), generator=generator).to(denoiser.device)
        self.sigmas = denoiser.sigmas(SAMPLING_STEPS)
        self._half_denoised: Tensor | None = None

    def predict(self, strengths: Sequence[float]) -> Tensor:
        """Return (len(strengths), count, C, ...) clean latents, as predicted with the slider at these strengths."""
        if self._half_denoised is None:
            self._half_denoised = self._denoise_frozen()
        sigma, count = self.sigmas[FROZEN_STEPS], len(self.noise)
        x = repeat(self._half_denoised, "n ... -> (s n) ...", s=len(strengths))
        by_entry = repeat(torch.tensor(strengths, device=x.device), "s -> 1 (s n) 1", n=count)
        clean = x - sigma * self.denoiser.predict(x, sigma, [self.prompt], self.layers, by_entry)[0]
        return rearrange(clean, "(s n) ... -> s n ...", n=count)

    def _denoise_frozen(self) -> Tensor:
        x = self.denoiser.scale_noise(self.sigmas[0], self.noise)
        steps = zip(self.sigmas[:FROZEN_STEPS], self.sigmas[1 : FROZEN_STEPS + 1], strict=True)
        for sigma, following in steps:
            x = x + (following - sigma) * self.denoiser.predict(x, sigma, [self.prompt])[0]
        return x


class Previews:
    """Shows a preview every `every` steps; 0 for never. One that fails is the last: the run goes on without.

    shapes: of the parts that latents are packed of; the part of the images is shown.
    """

    def __init__(self, sampler: ShownStrengths, loan: Loan, shapes: Shapes, every: int):
        self.sampler, self.loan, self.shapes, self.every = sampler, loan, shapes, every
        self._failed = False
        self.problem = ""  # why it has given up, for the user

    def is_due(self, step: int) -> bool:
        return not self._failed and self.every > 0 and step % self.every == 0

    def show(self, report: Callable[[Tensor], None]) -> None:
        """Predict (3, C, ...) latents and report them, while ComfyUI may move the model to make room for a VAE."""
        try:
            latents = image_part(self.sampler.predict(STRENGTHS)[:, 0], self.shapes)
            with self.loan.returned():
                report(latents)
        except RECOVERABLE_ERRORS as error:
            self._failed = True
            self.problem = f"Training goes on without previews, as one failed: {describe_error(error)}"
            log.warning(self.problem)
