"""Rollouts: sampling runs of the model while it is trained, by Euler's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """x: (K, B, C, ...), the latents of a rollout. sigmas: (K,), falling. end: (B, C, ...), after the last step."""

    x: Tensor
    sigmas: Tensor
    end: Tensor


def roll_out(
    guided: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    sigmas: Tensor,
    scale_noise: Callable[[Tensor, Tensor], Tensor],
) -> Trajectory:
    """Sample by Euler's method along d: x <- x + (sigma_next - sigma) * d(x, sigma).

    guided: the guided prediction d(x, sigma) for latents (B, C, ...). noise: (B, C, ...), standard normal.
    sigmas: (K + 1,), falling. scale_noise: the model's own map from noise to the
    latent at the first sigma.
    """
    x = scale_noise(sigmas[0], noise)
    latents = []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        latents.append(x)
        x = x + (following - sigma) * guided(x, sigma)
    return Trajectory(torch.stack(latents), sigmas[:-1], x)
