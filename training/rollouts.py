"""Frozen trajectories: partially denoised latents at every noise level, from one run of the bare model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """x: (K, B, C, ...), the latents met on the way. sigmas: (K,), their noise levels, falling."""

    x: Tensor
    sigmas: Tensor


def roll_out(
    guided: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor, scale_noise: Callable
) -> Trajectory:
    """Euler's method along d: x <- x + (sigma_next - sigma) * d(x, sigma).

    guided: the frozen model's guided prediction d(x, sigma) for latents (B, C, ...) at one noise level.
    noise: (B, C, ...), standard normal. sigmas: (K + 1,), falling; the last is not entered.
    scale_noise: the model's own map from noise to the latent at the first noise level.
    """
    x = scale_noise(sigmas[0], noise)
    met = []
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        met.append(x)
        x = x + (following - sigma) * guided(x, sigma)
    return Trajectory(torch.stack(met), sigmas[:-1])
