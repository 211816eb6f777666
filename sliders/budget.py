"""A budget for what the sliders of a stack change together: where they exceed it, all are turned down alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from .changes import Change, kind_of
from .stack import Stack
from .weight_products import weight_products

_ROUNDING = 1e-9  # of a total: a slider alone is within a budget of 1


def within_budget(stack: Stack, budget: float) -> tuple[Stack, tuple[float, ...]]:
    """Turn a stack down, where its total change is too large; also return the factor for each of its B batch entries.

    budget: of the total, in units of the change that the largest slider of the stack makes alone, at its strength. A
        change is measured by the Frobenius norm over all layers of the model, and over those of the text encoders
        likewise; the total is the norm of the sum, s^T G s with G the inner products and s the strengths. Gates
        count: it is the largest total at any part of sampling, for cond and for uncond.
    Raises ValueError if the budget is not positive, or a change is neither a low-rank product nor a plain
        difference.
    """
    if budget <= 0:
        raise ValueError(f"A budget is a positive multiple of the largest slider's change; got {budget:g}.")
    strengths = stack.strengths().double()  # (B, sliders)
    factors = torch.ones(len(strengths), dtype=torch.float64)
    of_text = torch.ones(1, len(stack), dtype=torch.float64)  # an encoding has no gates
    for layers, acting in (
        ([placed.slider.model_layers for placed in stack], _acting(stack)),
        ([placed.slider.text_layers for placed in stack], of_text),
    ):
        gram = _gram(stack, layers)
        allowed = budget * (strengths.abs() * gram.diagonal().clamp(min=0).sqrt()).amax() if len(stack) else 0.0
        at_times = strengths[:, None] * acting  # (B, times, sliders)
        totals = torch.einsum("bti,ij,btj->bt", at_times, gram, at_times).clamp(min=0).sqrt().amax(1)
        factors = torch.where(totals > allowed * (1 + _ROUNDING), factors.minimum(allowed / totals), factors)
    turned_down = bool((factors < 1).any())
    return _times(stack, factors) if turned_down else stack, tuple(factors.tolist())


def _gram(stack: Stack, layers: Sequence[Mapping[str, Change]]) -> Tensor:
    products = weight_products(layers)
    for placed, of, left_out in zip(stack, layers, products.left_out):
        if left_out:
            raise ValueError(
                f"Slider '{placed.slider.name}': its change of layer {left_out[0]} is a {kind_of(of[left_out[0]])}, "
                "and a budget is worked out for low-rank products and plain differences only. Set the budget to 0, "
                "or combine this slider after the others."
            )
    return products.gram


def _acting(stack: Stack) -> Tensor:
    """The gates' factors at the times at which a total can be largest, for cond and for uncond: (times, sliders)."""
    gates = [gate for placed in stack for gate in placed.gates]
    borders = {at for g in gates for at in (g.start, g.start + g.ramp, g.end - g.ramp, g.end)}
    ends = sorted({0.0, 1.0, *(min(max(at, 0.0), 1.0) for at in borders)})
    times = [*ends, *((a + b) / 2 for a, b in zip(ends, ends[1:]))]
    rows = [
        [(placed.cond_or_uncond in ("both", side)) * prod(g.factor(at) for g in placed.gates) for placed in stack]
        for side in ("cond", "uncond")
        for at in times
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _times(stack: Stack, factors: Tensor) -> Stack:
    """Multiply the strengths of each batch entry by its factor, (B,)."""
    turned = []
    for placed in stack:
        values = placed.strength * (len(factors) // len(placed.strength))
        turned.append(replace(placed, strength=tuple(v * float(f) for v, f in zip(values, factors))))
    return Stack(tuple(turned))
