"""Muon (K. Jordan et al., 2024): momentum whose matrices are made orthogonal before each step.

Every direction that a weight matrix can turn in then moves by the same amount, the rare ones too. Steps are
scaled to the size that AdamW's have (arXiv 2502.16982, equation 4), so that both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from .precision import bfloat16_is_fast

# Of x -> a x + b x^3 + c x^5, five times over: takes singular values in (0, 1] to about 1.
COEFFICIENTS, TIMES = (3.4445, -4.7750, 2.0315), 5
ADAMW_SIZE = 0.2  # root mean square of an AdamW step, in learning rates


class Muon(torch.optim.Optimizer):
    """For matrices and convolutions' kernels, which count as (out, in x places) matrices."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, momentum: float, weight_decay: float) -> None:
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(average, momentum)  # Nesterov
        direction = orthogonal(ahead.flatten(1)).view_as(parameter)
        size = ADAMW_SIZE * sqrt(max(len(parameter), parameter[0].numel()))
        parameter.mul_(1 - rate * weight_decay).add_(direction, alpha=-rate * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """(M, N) -> the nearest matrix with orthonormal rows or columns, roughly: singular values in 0.7 .. 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-7)).to(torch.bfloat16 if bfloat16_is_fast(x.device.type) else matrix.dtype)
    for _ in range(TIMES):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
