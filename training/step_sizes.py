"""Learning rates in units of the layer, so that one number suits the layers of every model.

A slider changes a layer's weight W, (out, n), by dW = c B A, with c = alpha / rank, A (rank, n) and B (out, rank).
Adam moves each number of a tensor by about its learning rate, however large the gradient is.

B begins at 0. Where its signs are as good as random, a step of B changes the weight by

    rms(step of dW) = c lr_B rms(A) sqrt(rank) = rho rms(W),   with   lr_B = rho rms(W) / (c rms(A) sqrt(rank))

A is what the slider looks at of its input x. The gradient of a row of A has the signs of an input, or their
opposites, so that a step of A changes A x by up to lr_A n rms(x), while A x itself is about sqrt(n) rms(A) rms(x):

    lr_A sqrt(n) / rms(A) = TURN rho,                          with   lr_A = TURN rho rms(A) / sqrt(n)

rms(A) is 1 / sqrt(3 n) at the start, so lr_A falls as 1 / n: what suits wide and narrow layers alike (LoRA+, arXiv
2402.12354). A whole difference of weights, of full rank, learns at lr = rho rms(W).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

RHO = 2e-3  # the share of its weight by which a step changes a layer
TURN = 128.0  # so that a step turns A by up to a quarter; the published trainers' 2e-4 does so at n = 700


@dataclass(frozen=True)
class LayerSize:
    """What the step sizes of a layer depend on.

    shape: of its weight, (out, in, *kernel). weight_rms: the root mean square of the weight's numbers; 0 where they
    are all zeros, or not known: the layer then counts as one with the weights that PyTorch begins with.
    """

    shape: tuple[int, ...]
    weight_rms: float

    @property
    def inputs(self) -> int:
        """How many numbers each of its outputs is a sum over."""
        return prod(self.shape[1:])

    @property
    def fresh_rms(self) -> float:
        """The rms of a uniform start with a variance of 1 / (3 n): PyTorch's for W, LoRA's for A."""
        return 1 / sqrt(3 * self.inputs)

    def rate_up(self, rho: float, rank: int, scale: float) -> float:
        """Return the learning rate of B. scale: alpha / rank."""
        return self.rate_dense(rho) / (scale * self.fresh_rms * sqrt(rank))

    def rate_down(self, rho: float) -> float:
        """Return the learning rate of A."""
        return TURN * rho * self.fresh_rms / sqrt(self.inputs)

    def rate_dense(self, rho: float) -> float:
        """Return the learning rate of a whole difference of weights."""
        return rho * (self.weight_rms or self.fresh_rms)
