"""Trains the probe: drawings have known numbers, and the network learns to read them.

Pictures are softened, shifted, tinted and made noisy on the way, because it will read a diffusion model's
pictures, which are a little of all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..measuring.probe import NUMBERS, Probe, Readings, split_columns
from ..world.pool import Pool
from ..world.portrait import BINARY
from .precision import bfloat16
from .run import Plan, channels_last, fit

PLAN = Plan(steps=2400, batch=64, rate=3e-3, warm_up=150, ema=0.998, weight_decay=0.02)
NUMBERS_WEIGHT = 30.0  # of the squared errors, which are far smaller than the entropies
THIN = {"smile": 3.0, "brow": 3.0}  # weights of what a few thin lines tell
NOISE = 0.08  # most standard deviation that is added to a picture, whose values span 2


def train_probe(pool: Pool, folder: Path, seed: int, plan: Plan = PLAN) -> Probe:
    """The whole run; the average of its weights."""
    torch.manual_seed(seed)
    return fit(channels_last(Probe()), _drawings(pool), _loss, plan, folder / "probe.pt", seed=seed)


def held_out_figures(readings: Readings, numbers: Tensor, names: Sequence[str] = NUMBERS) -> dict[str, float]:
    """R^2 of each number, the share read right of each discrete attribute. numbers: (N, 14), as `Pool.numbers`."""
    known = dict(zip(_TARGETS, numbers.T))
    figures = {}
    for name in names:
        error = (readings[name] - known[name]).square().mean()
        figures[name] = 1 - (error / known[name].var(correction=0)).item()
    for name in BINARY:
        figures[name] = ((readings[name] > 0.5) == (known[name] > 0.5)).float().mean().item()
    figures["style"] = (readings["style"].argmax(1) == known["style"].long()).float().mean().item()
    return figures


def figures_on(probe: Probe, pool: Pool) -> dict[str, float]:
    """`held_out_figures` of the probe as it is stored, in half precision."""
    probe.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in probe.state_dict().items()})
    parts = [probe.read(images(pictures)) for pictures in pool.batches(256)]
    readings = Readings(torch.cat([part.values for part in parts]))
    figures = held_out_figures(readings, torch.from_numpy(pool.numbers()))
    return {name: round(value, 4) for name, value in figures.items()}


def images(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) in [0, 1], as ComfyUI's IMAGE."""
    return rearrange(pictures, "b c h w -> b h w c") / 2 + 0.5


_TARGETS = (*NUMBERS[:-1], *BINARY, "style", NUMBERS[-1])  # the columns of `Pool.numbers`


def _drawings(pool: Pool):
    numbers = torch.from_numpy(pool.numbers())

    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(len(pool), size=size)
        pictures = augmented(pool.pictures(chosen), rng)
        return pictures.contiguous(memory_format=torch.channels_last), numbers[chosen]

    return batch


def augmented(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, C, H, W): blur, brightness, contrast and noise for each picture, one small shift for all."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

    def amount(limit: float) -> Tensor:
        return torch.rand((len(pictures), 1, 1, 1), generator=generator) * limit

    soft = blurred(pictures, sigma=rng.uniform(0.5, 1.3))
    pictures = torch.lerp(pictures, soft, amount(1.0))
    height, width = pictures.shape[-2:]
    x, y = rng.integers(5, size=2).tolist()
    padded = F.pad(pictures, (2, 2, 2, 2), mode="replicate")
    pictures = padded[..., y : y + height, x : x + width]
    pictures = pictures * (0.96 + amount(0.08)) + (amount(0.08) - 0.04)
    return pictures + amount(NOISE) * torch.randn(pictures.shape, generator=generator)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """A Gaussian of seven taps, by rows and by columns."""
    taps = torch.exp(-torch.arange(-3.0, 4.0).square() / (2 * sigma * sigma))
    kernel = (taps / taps.sum()).expand(pictures.shape[1], 1, 1, 7).to(pictures)
    padded = F.pad(pictures, (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=pictures.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=pictures.shape[1])


def _loss(probe: Probe, pictures: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the numbers plus the entropies of the rest: (B, 14) targets."""
    with bfloat16():
        values = probe(pictures).float()
    numbers, binary, style = split_columns(values)
    known = dict(zip(_TARGETS, targets.T))
    truth = torch.stack([known[name] for name in NUMBERS], 1)
    flags = torch.stack([known[name] for name in BINARY], 1)
    weights = torch.tensor([THIN.get(name, 1.0) for name in NUMBERS], device=numbers.device)
    return (
        NUMBERS_WEIGHT * ((numbers - truth).square() * weights).mean()
        + F.binary_cross_entropy_with_logits(binary, flags)
        + F.cross_entropy(style, known["style"].long())
    )
