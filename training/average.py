"""The average of what a run has learned, which is what it ends with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GAMMA = 4.0  # two thirds of the mean are of the last fifth of a run


class PowerAverage:
    """The mean of the parameters over the last part of a run, however long the run is (arXiv 2312.02696, eq. 123).

    After step t, with theta the parameters:

        mean  <-  b mean + (1 - b) theta,        b = (1 - 1 / t)^(gamma + 1)

    so that the first s of t steps make up (s / t)^(gamma + 1) of it. At a constant learning rate the parameters go on
    moving about what they have learned, by what each sample differs from the others; the mean does not.

    tensors: the mean, one tensor for each parameter, of its shape and on its device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], gamma: float = GAMMA):
        self._parameters, self._gamma = parameters, gamma
        self.tensors: list[Tensor] = [parameter.detach().clone() for parameter in parameters]

    def add(self, step: int) -> None:
        """Take in the parameters after a step, counted from 1."""
        with torch.no_grad():
            torch._foreach_lerp_(self.tensors, list(self._parameters), 1 - (1 - 1 / step) ** (self._gamma + 1))

    def put(self) -> None:
        """Set the parameters to their mean."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._parameters), self.tensors)
