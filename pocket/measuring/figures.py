"""Figures of a generative model, as pure functions of readings, features and pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two (N,)."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) decibels between pictures (B, H, W, 3) in [0, 1]."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1))


def precision_and_recall(real: Tensor, made: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """Shares of (M, D) made features within the real ones' reach, and the other way round: arXiv 1904.06991.

    A point's reach is the distance to its k-th nearest neighbour among its own.
    """
    return _share_within(made, real, neighbours), _share_within(real, made, neighbours)


def _share_within(points: Tensor, others: Tensor, neighbours: int) -> float:
    reach = torch.cdist(others, others).kthvalue(neighbours + 1, dim=1).values  # the nearest is the point itself
    return (torch.cdist(points, others) <= reach).any(1).float().mean().item()


def gradient_energy(images: Tensor) -> float:
    """Mean squared difference of neighbouring pixels of (B, H, W, 3) in [0, 1]."""
    across = images[:, :, 1:] - images[:, :, :-1]
    down = images[:, 1:] - images[:, :-1]
    return (across.square().mean() + down.square().mean()).item()


def patches(latents: Tensor, side: int = 2) -> Tensor:
    """(B, C, h, w) -> (B h w / side^2, C side^2), without overlap."""
    squares = latents.unfold(2, side, side).unfold(3, side, side)  # (B, C, h/s, w/s, s, s)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def blurred_to(images: Tensor, decibels: float) -> Tensor:
    """(B, H, W, 3), each blurred until it lies `decibels` from itself, on average over the batch."""
    low, high = 0.05, 8.0
    for _ in range(20):
        sigma = (low * high) ** 0.5
        soft = _gaussian(images, sigma)
        low, high = (sigma, high) if psnr(images, soft).mean() > decibels else (low, sigma)
    return soft


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    reach = int(np.ceil(3 * sigma))
    taps = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma * sigma))
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    planes = torch.nn.functional.pad(images.movedim(3, 1), (reach,) * 4, mode="replicate")
    planes = torch.nn.functional.conv2d(planes, taps, groups=3)
    return torch.nn.functional.conv2d(planes, taps.transpose(2, 3), groups=3).movedim(1, 3)


def shifts(a: Tensor, b: Tensor, most: int = 6) -> Tensor:
    """(B,) how far, in pixels, each of `b` has to be moved to lie best on that of `a`: (B, H, W, 3) in [0, 1]."""
    grey_a, grey_b = a.mean(3), b.mean(3)
    inner = grey_a[:, most:-most, most:-most]
    height, width = inner.shape[1:]
    moves = [(y, x) for y in range(-most, most + 1) for x in range(-most, most + 1)]
    errors = torch.stack(
        [
            (grey_b[:, most + y : most + y + height, most + x : most + x + width] - inner).square().mean((1, 2))
            for y, x in moves
        ]
    )
    lengths = torch.tensor([(y * y + x * x) ** 0.5 for y, x in moves])
    return lengths[errors.argmin(0)]
