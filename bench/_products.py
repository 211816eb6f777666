"""What a slider's products cost by themselves, on the shapes of a model's layers."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _models import settle
from torch import Tensor, nn


def two_products(module: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """B (A x) for a linear layer's or a convolution's input x."""
    if down.ndim == 2:
        return F.linear(F.linear(x, down), up)
    assert isinstance(module, nn.Conv2d)
    return F.conv2d(F.conv2d(x, down, None, module.stride, module.padding), up)


def shared_down(shape: tuple[int, ...], rank: int, device: torch.device, dtype: torch.dtype) -> float:
    """Queries, keys and values of an input (..., channels): the time with one joined A, over that with three."""
    x, weight = torch.randn(shape).to(device, dtype), torch.randn(shape[-1], shape[-1]).to(device, dtype)
    downs = [torch.randn(rank, shape[-1]).to(device, dtype) for _ in range(3)]
    ups = [torch.randn(shape[-1], rank).to(device, dtype) for _ in range(3)]
    joined = torch.cat(downs)

    def apart() -> list[Tensor]:
        return [F.linear(x, weight) + F.linear(F.linear(x, down), up) for down, up in zip(downs, ups)]

    def together() -> list[Tensor]:
        hidden = F.linear(x, joined).chunk(3, dim=-1)
        return [F.linear(x, weight) + F.linear(each, up) for each, up in zip(hidden, ups)]

    return shortest(together) / shortest(apart)


def shortest(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the quickest of several calls."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            settle()
            begin = time.perf_counter()
            call()
            settle()
            times.append(time.perf_counter() - begin)
    return min(times)
