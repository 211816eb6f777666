"""Trains the VAE in two stages: both halves together, then the decoder alone.

The first stage settles the latents, so that the UNet can begin to learn them while the decoder goes on.
In both the decoder sees latents disturbed a little, as a diffusion model will hand them over; in the first this
also keeps near latents near in the picture, since what lies within the disturbance cannot be told apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models.autoencoder import Autoencoder, divergence, sampled
from ..world.pool import Pool
from .precision import bfloat16
from .run import Plan, channels_last, fit

TOGETHER = Plan(steps=3700, batch=32, rate=1.5e-3, ema=0.998)
DECODER = Plan(steps=6000, batch=32, rate=1e-3, ema=0.999, warm_up=100)
KL_WEIGHT = 1e-3
DISTURBED = 0.2  # of the latents' spread, at the most
COUNTED = 2048  # drawings that tell a latent channel's mean and spread


def train_together(network: Autoencoder, pool: Pool, folder: Path, seed: int, plan: Plan = TOGETHER) -> Autoencoder:
    """Encoder and decoder, from the weights that `network` has."""
    return fit(channels_last(raw(network)), _pictures(pool), _loss_together, plan, folder / "vae.pt", seed=seed)


def train_decoder(vae: Autoencoder, pool: Pool, folder: Path, seed: int, plan: Plan = DECODER) -> Autoencoder:
    """The decoder alone; the latents stay what they are."""
    vae.requires_grad_(True)
    vae.encoder.requires_grad_(False)
    return fit(vae, _pictures(pool), _loss_of_decoder, plan, folder / "decoder.pt", seed=seed)


@torch.no_grad()
def normalised(vae: Autoencoder, pool: Pool) -> Autoencoder:
    """Let each latent channel have mean 0 and spread 1 over drawings."""
    latents = torch.cat([vae.posterior(pictures)[0] for pictures in pool.batches(64, COUNTED)])
    vae.shift.copy_(latents.mean((0, 2, 3), keepdim=True))
    vae.scale.copy_(latents.std((0, 2, 3), keepdim=True))
    return vae


@torch.no_grad()
def raw(vae: Autoencoder) -> Autoencoder:
    """Undo `normalised`: latents are the posterior's own."""
    vae.shift.zero_()
    vae.scale.fill_(1)
    return vae


def _pictures(pool: Pool):
    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor]:
        pictures = pool.pictures(rng.integers(len(pool), size=size))
        return (pictures.contiguous(memory_format=torch.channels_last),)

    return batch


def _loss_together(vae: Autoencoder, pictures: Tensor) -> Tensor:
    with bfloat16():
        mean, log_variance = vae.posterior(pictures)
        mean, log_variance = mean.float(), log_variance.float()
        decoded = vae.decode(_disturbed(sampled(mean, log_variance)))
    return _difference(decoded.float(), pictures) + KL_WEIGHT * divergence(mean, log_variance)


def _loss_of_decoder(vae: Autoencoder, pictures: Tensor) -> Tensor:
    with bfloat16():
        with torch.no_grad():
            latents = vae.encode(pictures).float()
        decoded = vae.decode(_disturbed(latents))
    return _difference(decoded.float(), pictures)


def _disturbed(latents: Tensor) -> Tensor:
    """With noise added: in each picture another amount, up to DISTURBED of each channel's spread."""
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    amount = DISTURBED * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    return latents + amount * spread * torch.randn_like(latents)


def _difference(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error of the values, and absolute error of their differences, which keeps edges."""
    error = decoded - pictures
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * edges + 4 * error.square().mean()
