"""The low-rank products of one layer: all sliders' projections joined, and what they add to the layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..changes import Dense, LowRank
from .layer_kinds import along, convolve


@dataclass(frozen=True)
class Joined:
    """The active sliders of one layer: the low-rank ones concatenated, the dense ones beside them.

    sliders: the slider of each of the sum-of-ranks channels between down and up.
    """

    down: Tensor | None
    up: Tensor | None
    sliders: tuple[int, ...]
    dense: tuple[tuple[int, Dense], ...]

    def tensors(self) -> list[Tensor]:
        products = [t for t in (self.down, self.up) if t is not None]
        return products + [t for _, change in self.dense for t in change.differences.values()]


def join(changes: Sequence[tuple[int, LowRank | Dense]], device: torch.device, dtype: torch.dtype) -> Joined:
    """Join the changes of one layer; the low-rank ones as A (sum of ranks, in, ...), B (out, sum of ranks, ...)."""
    low_rank = [(i, change) for i, change in changes if isinstance(change, LowRank)]
    if dtype == torch.float16:
        low_rank = [(i, _balanced(change)) for i, change in low_rank]
    dense = tuple((i, change.to(device, dtype)) for i, change in changes if isinstance(change, Dense))
    if not low_rank:
        return Joined(None, None, (), dense)
    down = torch.cat([change.down.to(device, dtype) for _, change in low_rank], dim=0)
    up = torch.cat([change.up.to(device, dtype) for _, change in low_rank], dim=1)
    return Joined(down, up, tuple(i for i, change in low_rank for _ in range(change.rank)), dense)


def _balanced(change: LowRank) -> LowRank:
    """The same product of factors alike in size: with a small alpha in it, one alone may be too small for float16."""
    if change.down.requires_grad or change.up.requires_grad:
        return change
    down, up = change.down.float(), change.up.float()
    largest = down.abs().max(), up.abs().max()
    if not all(largest):
        return change
    ratio = (largest[0] / largest[1]).sqrt()
    return LowRank(down / ratio, up * ratio)


def add_linear(module: nn.Module, x: Tensor, y: Tensor, down: Tensor, up: Tensor, s: Tensor) -> Tensor:
    hidden = F.linear(x, down)  # (b, ..., in) -> (b, ..., r)
    hidden = (hidden * along(s, hidden, channel=-1)).view_as(hidden)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        return y + F.linear(hidden, up).to(y.dtype)
    # In place on the layer's fresh output: one pass over it instead of two
    y.view(-1, y.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up.T)
    return y


def add_convolution(module: nn.Module, x: Tensor, y: Tensor, down: Tensor, up: Tensor, s: Tensor) -> Tensor:
    hidden = convolve(module, x, down)  # (b, in, ...) -> (b, r, ...)
    hidden = hidden * along(s, hidden, channel=1)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        return y + torch.einsum("or,br...->bo...", up.flatten(1), hidden).to(y.dtype)
    batched = up.flatten(1).expand(len(y), -1, -1)  # (out, r, 1, ...) -> (b, out, r)
    y.flatten(2).baddbmm_(batched, hidden.flatten(2))  # a 1x1 convolution is one product an image
    return y
