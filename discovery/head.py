"""A small network from predicted clean latents straight to their embedding: training through it spares the decoder.

It is fitted on the samples that directions were found on. It is differentiated where those samples lie, and there
alone it needs to be right; `explained` says how right.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

WIDTHS = (64, 128, 256)
PLACES = 4  # a side of what is left of the image before the last layer
RATE, BATCH = 2e-3, 64


class EmbeddingHead(nn.Module):
    """(B, C, h, w), or (B, C, T, h, w) of videos, to (B, D) of unit length.

    channels: C, and T times as many of a video. mean, deviation: of the latents' channels, (C,).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, dimensions: int, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("deviation", deviation[:, None, None])
        before = (channels, *WIDTHS[:-1])
        convolutions = [layer for a, b in zip(before, WIDTHS) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.SiLU())]
        self.features = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(PLACES), nn.Flatten())
        self.last = nn.Linear(WIDTHS[-1] * PLACES**2, dimensions)

    def forward(self, latents: Tensor) -> Tensor:
        return F.normalize(self.last(self.features((as_image(latents) - self.mean) / self.deviation)), dim=-1)


def as_image(latents: Tensor) -> Tensor:
    """Frames of a video become channels; latents of images stay as they are."""
    return rearrange(latents, "b c t h w -> b (c t) h w") if latents.ndim == 5 else latents


def fitted_head(
    latents: Tensor,
    embeddings: Tensor,
    steps: int,
    generator: torch.Generator,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> EmbeddingHead:
    """Fit a head to clean latents (N, C, ...) and their embeddings (N, D), by AdamW along half a cosine.

    should_stop: told before every step which one it is; what was fitted so far is returned where it says so.
    """
    images = as_image(latents)
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        head = EmbeddingHead(images.shape[1], embeddings.shape[1], mean, deviation).to(latents.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    spread = embeddings.var(0).sum()
    for step in range(steps):
        if should_stop(step):
            break
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + cos(pi * step / steps))
        chosen = torch.randint(len(latents), (BATCH,), generator=generator).to(latents.device)
        loss = (head(latents[chosen]) - embeddings[chosen]).square().sum(1).mean() / spread
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return head.requires_grad_(False)


@torch.no_grad()
def explained(head: EmbeddingHead, latents: Tensor, embeddings: Tensor, directions: Tensor) -> Tensor:
    """R^2 of the embeddings' coordinates along each direction (K, D), on samples it was not fitted to: (K,)."""
    truth = embeddings @ directions.T
    guess = torch.cat([head(part) for part in latents.split(BATCH)]) @ directions.T
    return 1 - (guess - truth).square().mean(0) / truth.var(0, unbiased=False)
