"""The pocket model's VAE: (B, 3, H, W) pictures in [-1, 1] <-> (B, 8, H/8, W/8) latents.

Residual convolutions without normalisation. The first and the last step only rearrange pixels, so most of
the work is done at an eighth and a quarter of the picture's size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 8
FACTOR = 8  # pixels a latent's side
LOG_VARIANCE = (-12.0, 2.0)  # bounds of what the encoder may say


class Residual(nn.Module):
    """x + f(x) with two 3 x 3 convolutions; nothing at first."""

    def __init__(self, width: int):
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _residuals(width: int, count: int) -> list[nn.Module]:
    return [Residual(width) for _ in range(count)]


class Autoencoder(nn.Module):
    """`encode` and `decode` as ComfyUI's VAE calls them; `posterior` and `loss` for training."""

    shift: Tensor
    scale: Tensor

    def __init__(self):
        super().__init__()
        # Mean and spread of each latent channel over the drawings: latents are handed out without them.
        self.register_buffer("shift", torch.zeros(1, CHANNELS, 1, 1))
        self.register_buffer("scale", torch.ones(1, CHANNELS, 1, 1))
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, 80, 3, padding=1),
            *_residuals(80, 2),
            nn.Conv2d(80, 128, 3, stride=2, padding=1),
            *_residuals(128, 2),
            nn.SiLU(),
            nn.Conv2d(128, 2 * CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 144, 3, padding=1),
            *_residuals(144, 3),
            nn.Conv2d(144, 4 * 80, 3, padding=1),
            nn.PixelShuffle(2),
            *_residuals(80, 3),
            nn.Conv2d(80, 4 * 32, 3, padding=1),
            nn.PixelShuffle(2),
            *_residuals(32, 2),
            nn.SiLU(),
            nn.Conv2d(32, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, (B, 8, H/8, W/8) each."""
        mean, log_variance = self.encoder(pictures).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 8, H/8, W/8), the posterior's mean in units of its spread."""
        return (self.posterior(pictures)[0] - self.shift) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 8, h, w) -> (B, 3, 8h, 8w), about [-1, 1]."""
        return self.decoder(latents * self.scale + self.shift)


def sampled(mean: Tensor, log_variance: Tensor) -> Tensor:
    """One draw of the posterior N(mean, exp(log_variance))."""
    return mean + torch.randn_like(mean) * (0.5 * log_variance).exp()


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from a unit normal, the mean over all values: arXiv 1312.6114, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
