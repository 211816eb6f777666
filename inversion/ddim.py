"""DDIM inversion: sampling run backwards, from an image up to the noise that it could have come from.

All families have one form: d(x, sigma) = (x - denoised) / sigma, and Euler's step along it. Where x = clean + sigma
noise, that is DDIM's step (arXiv 2010.02502, in the variables of arXiv 2206.00364, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # d(x, sigma): (B, C, ...), () -> (B, C, ...)


def euler_step(x: Tensor, sigma: Tensor, next_sigma: Tensor, d: Tensor) -> Tensor:
    """Returns x at `next_sigma`, from x at `sigma` along d: (B, C, ...) -> (B, C, ...)."""
    return x + (next_sigma - sigma) * d


def ddim_inversion(
    predict: Predict, clean: Tensor, sigmas: Tensor, input_scale: Callable[[Tensor], Tensor], refinement: int = 0
) -> Iterator[Tensor]:
    """Yields the latents (B, C, ...) of images at every sigma, from the second lowest up to the first.

    clean: (B, C, ...) at the last of the sigmas, which mostly is 0. sigmas: (n + 1,), falling. input_scale: c_in, see
    `Denoiser.input_scale`.
    A step of sampling, x_{i+1} = x_i + (s_{i+1} - s_i) d(x_i, s_i), is solved for x_i. The published inversion (arXiv
    2211.09794) asks the model at the upper timestep with the latent that is there, in the scale of its own level: the
    model reads c_in(s_{i+1}) x_{i+1}, which is c_in(s_i) x for x = x_{i+1} c_in(s_{i+1}) / c_in(s_i). With
    `refinement` the step so made is the first guess of the fixed point x_i = x_{i+1} + (s_i - s_{i+1}) d(x_i, s_i),
    which sampling undoes exactly; it is iterated so many times.
    """
    x = clean
    for sigma, next_sigma in zip(sigmas[:-1].flip(0), sigmas[1:].flip(0)):

        def d(guess: Tensor, at: Tensor = sigma) -> Tensor:
            return predict(guess, at)

        step = sigma - next_sigma
        first = x + step * d(x * (input_scale(next_sigma) / input_scale(sigma)))
        x = fixed_point(d, x, step, first, refinement)
        yield x


def fixed_point(d: Callable[[Tensor], Tensor], x: Tensor, step: Tensor, first: Tensor, iterations: int) -> Tensor:
    """Solves y = x + step * d(y) by iteration, beginning with y = first: all (B, C, ...).

    Where an iteration moves a batch entry away from the solution, the entry returns to the best y so far, and from
    there takes half the step.
    """
    y = best = first
    best_change, least = torch.zeros_like(y), torch.full_like(_norms(y), float("inf"))
    damping = torch.ones_like(least)  # share of the step that is taken: (B, 1, ...)
    for _ in range(iterations):
        change = x + step * d(y) - y
        nearer = _norms(change) < least
        best, best_change = torch.where(nearer, y, best), torch.where(nearer, change, best_change)
        least = torch.where(nearer, _norms(change), least)
        damping = torch.where(nearer, damping, damping / 2)
        y = best + damping * best_change
    return y


def append_dims(x: Tensor, ndim: int) -> Tensor:
    """Returns x (B,) with dimensions of size 1 appended up to `ndim`: (B, 1, ...)."""
    return x[(..., *[None] * (ndim - x.ndim))]


def _norms(x: Tensor) -> Tensor:
    """Returns the norm of each batch entry: (B, C, ...) -> (B, 1, ...)."""
    return append_dims(rearrange(x, "b ... -> b (...)").norm(dim=1), x.ndim)
