"""Weights in eight bits: each row of a matrix or of a convolution is whole numbers of -127..127 times a scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST = 127
SCALE = ".scale"  # behind a weight's name: that of its rows
SMALL = 4096  # numbers; tensors of fewer, and vectors, stay in half precision


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large tensors (rows, ...) as int8 with their scales (rows,), the others in half precision.

    A number is off by half a scale at most, that is by 1/254 of the largest of its row.
    Raises ValueError for a name that a scale would take.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.endswith(SCALE):
            raise ValueError(f"A weight cannot be called {name!r}: names of scales end in {SCALE!r}.")
        if not weight.is_floating_point() or weight.ndim < 2 or weight.numel() < SMALL:
            stored |= in_half_precision({name: weight})
        else:
            rows = weight.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / MOST
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(weight.shape)
            stored[name + SCALE] = scale
    return stored


def in_half_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole numbers stay as they are."""
    return {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In single precision, what was packed; tensors that were stored otherwise come as they are."""
    weights = {}
    for name, weight in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        scale = stored.get(name + SCALE)
        weights[name] = (
            weight.float() if scale is None else (weight.float().flatten(1) * scale[:, None]).view(weight.shape)
        )
    return weights
