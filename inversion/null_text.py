"""Null-text optimisation (arXiv 2211.09794, section 3.2): the negative embedding of one step of sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from .ddim import euler

Embedding = tuple[Tensor, ...]  # what the model reads of a prompt, such as (B, tokens, width) and pooled (B, width)
# d(x, sigma) for an embedding: (rows, C, ...) latents, their embeddings, their numbers in the batch -> (rows, C, ...)
PredictNull = Callable[[Tensor, Embedding, Tensor], Tensor]

_SMALLEST = 1e-30
_NOT_READ = (
    "Inversion: this model does not read the embedding of the negative prompt, so there is nothing to fit. Choose "
    "the method 'plain' or 'negative prompt'."
)


@dataclass(frozen=True)
class Step:
    """One step of sampling under guidance, and where it should land.

    x: (B, C, ...) the running latents at `sigma`. target: (B, C, ...) the picture's at `following`.
    d_prompt: (B, C, ...) the prompt's prediction at x. guidance: the scale of classifier-free guidance.
    scale: what the latents' squares are divided by in the loss, to be of the clean latents' size.
    """

    x: Tensor
    sigma: Tensor
    following: Tensor
    target: Tensor
    d_prompt: Tensor
    guidance: float
    scale: float = 1.0

    def landed(self, d_null: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Where rows of it land if the negative's prediction is d_null: (rows, C, ...) -> (rows, C, ...)."""
        d = classifier_free(self.d_prompt[rows], d_null, self.guidance)
        return euler(self.x[rows], self.sigma, self.following, d)

    def losses(self, landed: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows,): mean squared distance from the target."""
        return (landed - self.target[rows]).square().flatten(1).mean(1) / self.scale

    def slope(self, landed: Tensor, rows: Tensor) -> Tensor:
        """The derivative of each row's loss by its d_null: (rows, C, ...)."""
        by_d_null = (self.following - self.sigma) * (1 - self.guidance)
        return 2 * by_d_null * (landed - self.target[rows]) / (landed[0].numel() * self.scale)


@dataclass(frozen=True)
class Fitted:
    """embedding: as given, fitted. losses: for each row, before every step that Adam made for it."""

    embedding: Embedding
    losses: tuple[tuple[float, ...], ...]


def fit(predict: PredictNull, embedding: Embedding, step: Step, steps: int, rate: float, tolerance: float) -> Fitted:
    """Fit the embedding so that the step lands on its target, with Adam started afresh.

    As published, a row whose loss is below the tolerance makes the step of that loss and is then done; rows do not
    know of each other. No more than `steps` steps each. The graph of a step does not outlive it.
    Raises FloatingPointError for a loss or a gradient that is not finite, ValueError if there is nothing to fit.
    """
    leaves = tuple(part.detach().clone().requires_grad_() for part in embedding)
    adam = torch.optim.Adam(leaves, lr=rate)
    losses: list[list[float]] = [[] for _ in step.x]
    rows = torch.arange(len(step.x), device=step.x.device)
    for _ in range(steps):
        found = _descend(predict, leaves, adam, step, rows)
        for row, loss in zip(rows.tolist(), found.tolist()):
            losses[row].append(loss)
        level = f"at noise level {float(step.sigma):.3g}"
        if not torch.isfinite(found).all():
            raise FloatingPointError(f"the loss {level} is {float(found.sum()):.3g}")
        if not all(torch.isfinite(leaf).all() for leaf in leaves):
            raise FloatingPointError(f"the gradient of the loss {level} is not finite")
        rows = rows[found >= tolerance]
        if not len(rows):
            break
    return Fitted(tuple(leaf.detach() for leaf in leaves), tuple(map(tuple, losses)))


def _descend(predict: PredictNull, leaves: Embedding, adam: torch.optim.Adam, step: Step, rows: Tensor) -> Tensor:
    """One step of Adam for some rows; their losses before it, (rows,)."""
    with torch.enable_grad():
        d_null = predict(step.x[rows], tuple(leaf[rows] for leaf in leaves), rows)
    if not d_null.requires_grad:
        raise ValueError(_NOT_READ)
    with torch.no_grad():
        landed = step.landed(d_null.detach(), rows)
        losses, slope = step.losses(landed, rows), step.slope(landed, rows)
        # goes backward at size 1, row by row: half-precision layers would lose it as small as it is
        size = slope.flatten(1).abs().amax(1).clamp(min=_SMALLEST)
        slope /= size.view(-1, *(1 for _ in slope.shape[1:]))
    gradients = torch.autograd.grad(d_null, leaves, slope, allow_unused=True)
    if gradients[0] is None:
        raise ValueError(_NOT_READ)
    before = [leaf.detach().clone() for leaf in leaves]
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients):
            leaf.grad = torch.zeros_like(leaf)
            if gradient is not None:
                leaf.grad[rows] = gradient[rows] * size.view(-1, *(1 for _ in leaf.shape[1:]))
    adam.step()
    _hold_all_but(rows, leaves, before)
    return losses


@torch.no_grad()
def _hold_all_but(rows: Tensor, leaves: Embedding, before: Sequence[Tensor]) -> None:
    """Adam's momentum moves rows without a gradient as well; those that are done stay."""
    done = torch.ones(len(leaves[0]), dtype=torch.bool, device=rows.device)
    done[rows] = False
    for leaf, old in zip(leaves, before):
        leaf[done] = old[done]
