"""Quick looks at a slider while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..comfy_host.preview_budget import Looks

if TYPE_CHECKING:
    from ..comfy_host.denoiser import Denoiser
    from .trainable_layers import TrainableLayers

LEVEL = 0.4  # of sampling: noisy enough to change, clear enough to see
STEPS = 20  # of that sampling


class PreviewSampler:
    """The same latents, denoised halfway by the frozen model, finished in one step at any strength.

    prompt: what they show. count: how many of them. seed: of their noise. shape: (C, ...) of a latent.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: TrainableLayers,
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
        clean = x - sigma * self.denoiser.predict(x, sigma, [self.prompt], self.layers, by_entry)[0]
        return clean.unflatten(0, (len(strengths), -1))

    def _half_done(self) -> Tensor:
        x = self.denoiser.scale_noise(self.sigmas[0], self.noise)
        for sigma, following in zip(self.sigmas[: self.level], self.sigmas[1 : self.level + 1]):
            x = x + (following - sigma) * self.denoiser.predict(x, sigma, [self.prompt])[0]
        return x


class Strip:
    """One latent at strength -1, 0 and +1, at intervals of `every` steps or more; 0 for never.

    As often as there is time for it: what becomes of the latents is part of the look. The first one comes early, if
    the run is long enough for it.
    begun: the step that the run goes on from. steps: the one that it ends with.
    """

    def __init__(self, half_done: PreviewSampler, looks: Looks, every: int, begun: int, steps: int):
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
