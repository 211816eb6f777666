"""How far a visual slider moves the images that it was trained on, for `strength_fit`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rollout import roll_out

if TYPE_CHECKING:
    from ..comfy_host.predictor import ActingLayers, DiffusionPredictor
    from .visual_samples import LatentSet

STEPS, FIRST = 10, 1  # of a schedule of so many steps, the one that begins at a noisy image
SETS = 4


class NoisyImages:
    """The two images furthest apart of a few sets, with the noise of a tenth of sampling.

    What is where in them still shows, and what the slider turns is open. first: the step that sampling begins at.
    """

    def __init__(self, denoiser: DiffusionPredictor, sets: Sequence[LatentSet], seed: int, first: int = FIRST):
        self.denoiser, self.sets = denoiser, sets[:SETS]
        self._sigmas = denoiser.sigmas(STEPS)[min(max(first, FIRST), STEPS - 1) :]
        generator = torch.Generator().manual_seed(seed)
        self._noise = [torch.randn(one.latents.shape[1:], generator=generator) for one in self.sets]

    def moved(self, layers: ActingLayers, factor: float) -> float:
        """Return the share of the way between both images that the slider moves them by from -factor to +factor.

        The way is that of two units of strength, whatever strengths the images have.
        """
        along = whole = 0.0
        for one, noise in zip(self.sets, self._noise, strict=True):
            mask = one.mask_for_latents()
            weight = 1.0 if mask is None else mask.to(self.denoiser.device)
            low, high = min(one.strengths), max(one.strengths)
            ends = one.latents[[one.strengths.index(low), one.strengths.index(high)]]
            ends = ends.to(self.denoiser.device, torch.float32)
            apart = (ends[1] - ends[0]) * 2 / (high - low)
            for clean in ends:
                less, more = self._sampled(one.prompt, clean, noise, layers, factor)
                along += float((weight * (more - less) * apart).sum())
                whole += float((weight * apart * apart).sum())
        return along / whole

    def _sampled(self, prompt: str, clean: Tensor, noise: Tensor, layers: ActingLayers, factor: float) -> Tensor:
        """(C, ...) -> (2, C, ...): sampled from one noisy image with the slider at -factor and at +factor."""
        strengths = factor * torch.tensor([-1.0, 1.0], device=self.denoiser.device).view(1, 2, 1)
        both = noise.to(self.denoiser.device).expand(2, *noise.shape)

        def acting(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser.predict(x, sigma, [prompt], layers, strengths)[0]

        with_noise = partial(self.denoiser.scale_noise, latents=clean.expand_as(both))
        return roll_out(acting, both, self._sigmas, with_noise).end.float()
