"""Group normalisation (arXiv 1803.08494) for channels-last training on a CPU.

PyTorch's own takes half of the UNet's training time in this layout, since it walks through each group by itself.
This one needs sums of whole rows alone: over space for each channel, then over the few channels of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn


class GroupNorm(torch.autograd.Function):
    """weight (x - mean) / sqrt(var + eps) + bias, mean and variance over a group of channels and all places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """(B, C, H, W), channels-last, (C,), (C,) -> (B, C, H, W) of x's type."""
        rows = rearrange(x, "b c h w -> b (h w) c")
        mean = _over_groups(rows.mean(1, dtype=torch.float32), groups)
        variance = _over_groups(rows.square().mean(1, dtype=torch.float32), groups) - mean.square()
        deviation = (variance + eps).rsqrt()  # 1 / sqrt(var + eps), (B, C)
        ctx.save_for_backward(x, weight, mean, deviation)
        ctx.groups = groups
        gain = deviation * weight
        return _affine(x, gain, bias - mean * gain)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dx = gain dy - gain-weighted mean and projection on the normalised x: (7) of arXiv 1502.03167, by group."""
        x, weight, mean, deviation = ctx.saved_tensors
        rows, dy = (rearrange(t, "b c h w -> b (h w) c") for t in (x, gradient))
        places = rows.shape[1]
        sum_dy = dy.sum(1, dtype=torch.float32)
        sum_dy_x = (dy * rows).sum(1, dtype=torch.float32)
        sum_dy_normal = (sum_dy_x - mean * sum_dy) * deviation
        along = _over_groups(sum_dy_normal * weight, ctx.groups) / places * deviation.square()
        level = _over_groups(sum_dy * weight, ctx.groups) / places * deviation - along * mean
        dx = _affine(gradient, deviation * weight, -level) - _affine(x, along, torch.zeros_like(along))
        return dx, sum_dy_normal.sum(0), sum_dy.sum(0), None, None


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """(B, C) -> (B, C): each channel's group's mean."""
    size = values.shape[1] // groups
    return repeat(reduce(values, "b (g s) -> b g", "mean", s=size), "b g -> b (g s)", s=size)


def _affine(x: Tensor, gain: Tensor, level: Tensor) -> Tensor:
    """gain x + level with (B, C) each."""
    gain, level = (t[:, :, None, None].to(x.dtype) for t in (gain, level))
    return torch.addcmul(level, x, gain)


class RowGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with the same weights and another way of working them out."""

    def forward(self, x: Tensor) -> Tensor:
        return GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def with_row_group_norm(network: nn.Module) -> nn.Module:
    """Let every `nn.GroupNorm` of `network` work as `RowGroupNorm`. In place; weights and names stay."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.__class__ = RowGroupNorm
    return network
