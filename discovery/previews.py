"""Previews of directions while they are being trained: a row a direction, at strengths -1, 0 and +1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from .trajectories import Trajectories, clean_latents

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from ..training.trainable_layers import TrainableLayers

ROWS = 6  # directions that are shown, the widest
STEP = 0.4  # of sampling: an image can still change there, and its content shows


class DirectionPreviews:
    """Predicts, at one step of a trajectory, what each direction makes of the image there.

    of: trajectories that nothing is trained on; the first is shown.
    """

    def __init__(self, denoiser: DiffusionPredictor, layers: TrainableLayers, of: Trajectories):
        self.denoiser, self.layers, self.prompt = denoiser, layers, of.prompt
        step = int(STEP * len(of.sigmas))
        self.x, self.sigma = of.x[:1, step].to(denoiser.device), of.sigmas[step].to(denoiser.device)

    def predict(self, strengths: Sequence[float]) -> Tensor:
        """Return (rows * len(strengths), 1, C, ...) clean latents, direction by direction."""
        rows = min(self.layers.count, ROWS)
        by_entry = torch.zeros(rows, len(strengths), self.layers.count, device=self.x.device)
        by_entry[range(rows), :, range(rows)] = torch.tensor(strengths, device=self.x.device)
        x = self.x.repeat(rows * len(strengths), *(1 for _ in self.x.shape[1:]))
        by_entry = rearrange(by_entry, "rows s sliders -> 1 (rows s) sliders")
        d = self.denoiser.predict(x, self.sigma, [self.prompt], self.layers, by_entry)[0]
        return clean_latents(x, self.sigma, d)[:, None]
