"""From a picture up to the noise it could have come from: sampling run backwards.

Every family in one form: d(x, sigma) = (x - denoised) / sigma, and Euler's step along it, which is DDIM's where
sigma is the noise beside a latent of full size (arXiv 2010.02502, in the variables of arXiv 2206.00364, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # d(x, sigma): (B, C, ...), () -> (B, C, ...)


def euler(x: Tensor, sigma: Tensor, following: Tensor, d: Tensor) -> Tensor:
    """x at the noise level `following`, from x at `sigma` along d: (B, C, ...) -> (B, C, ...)."""
    return x + (following - sigma) * d


def upwards(predict: Predict, clean: Tensor, sigmas: Tensor, refinement: int = 0) -> Iterator[Tensor]:
    """The latents (B, C, ...) of a picture at every noise level, from the second lowest up to the first.

    sigmas: (n + 1,), falling, the last is the level of `clean`, (B, C, ...): mostly 0.
    A step of sampling, x_{i+1} = x_i + (s_{i+1} - s_i) d(x_i, s_i), is solved for x_i. The published inversion takes
    d at the latent it has, d(x_{i+1}, s_i); with `refinement` that solution is put in again so many times: the
    fixed point x_i = x_{i+1} + (s_i - s_{i+1}) d(x_i, s_i) is what sampling undoes exactly.
    """
    x = clean
    for sigma, following in zip(sigmas[:-1].flip(0), sigmas[1:].flip(0)):
        x = refined(lambda guess, at=sigma: predict(guess, at), x, sigma - following, refinement)
        yield x


def refined(d: Callable[[Tensor], Tensor], x: Tensor, step: Tensor, iterations: int) -> Tensor:
    """y = x + step * d(y), iterated from d(x): (B, C, ...) -> (B, C, ...).

    A row that an iteration leads away from the solution goes back to the nearest so far, and from there half as far.
    """
    y = kept = x + step * d(x)
    towards, least = torch.zeros_like(y), torch.full_like(_sizes(y), float("inf"))
    share = torch.ones_like(least)  # of the way that is gone, (B, 1, ...)
    for _ in range(iterations):
        change = x + step * d(y) - y
        nearer = _sizes(change) < least
        kept, towards = torch.where(nearer, y, kept), torch.where(nearer, change, towards)
        least = torch.where(nearer, _sizes(change), least)
        share = torch.where(nearer, share, share / 2)
        y = kept + share * towards
    return y


def _sizes(x: Tensor) -> Tensor:
    """The norm of each row: (B, C, ...) -> (B, 1, ...)."""
    return x.flatten(1).norm(dim=1).view(-1, *(1 for _ in x.shape[1:]))
