"""What *Combine Sliders* does to a stack beside joining it: orthogonal sliders, and a budget for the total."""

from __future__ import annotations

from torch import Tensor

from ..evaluation.crosstalk import Effects
from ..evaluation.crosstalk_tables import effects_from
from ..sliders.budget import within_budget
from ..sliders.mixing import check_mixable, gram_schmidt, mixed, without_side_effects
from ..sliders.stack import Stack
from ..sliders.weight_products import weight_products
from .report import Report

OFF, BY_WEIGHTS, BY_EFFECT = "off", "by weights", "by effect"
SMALLEST_SAID = 0.005  # multiples that the report rounds to nothing


def orthogonalised(stack: Stack, how: str, effects: str) -> tuple[Stack, Report]:
    """Make the sliders of a stack orthogonal, and say what each is made of.

    how: OFF, BY_WEIGHTS in the order of the stack, or BY_EFFECT. effects: what Slider Report has measured of these
    sliders, as JSON.
    Raises ValueError if the sliders cannot be mixed with each other, or the effects are missing, or of others.
    """
    if how == OFF:
        return stack, Report()
    if len(stack) < 2:
        return stack, Report().warn("Orthogonalising takes at least two sliders; the stack stays as it is.")
    check_mixable(stack)
    if how == BY_WEIGHTS:
        products = weight_products([placed.slider.layers for placed in stack])
        mixture = gram_schmidt(products.gram)
        left = (mixture @ products.gram @ mixture.T).diagonal().clamp(min=0) / products.gram.diagonal().clamp(
            min=1e-30
        )
        parts = [f"; {share:.0%} of its own change is left" for share in left.sqrt().tolist()]
    else:
        measured = _effects_of(stack, effects)
        mixture = without_side_effects(measured.matrix, measured.errors, measured.own, bool(measured.encoder))
        parts = [""] * len(stack)
    lines = [f"{_made_of(stack, mixture, row)}{parts[row]}" for row in range(len(stack))]
    return mixed(stack, mixture), Report().fact(f"Orthogonalised {how}:", *lines)


def kept_within(stack: Stack, budget: float) -> tuple[Stack, Report]:
    """Turn a stack down to a budget, 0 for none, and say by how much; see `within_budget`."""
    if not budget or not len(stack):
        return stack, Report()
    turned, factors = within_budget(stack, budget)
    if min(factors) == 1:
        return turned, Report().fact(f"Within the budget of {budget:g}: the strengths stay.")
    spread = f"{min(factors):.2f}" + (f" to {max(factors):.2f}" if max(factors) - min(factors) > 0.005 else "")
    return turned, Report().fact(f"Over the budget of {budget:g}: all strengths times {spread}.")


def _effects_of(stack: Stack, text: str) -> Effects:
    if not text.strip():
        raise ValueError(
            "Combine Sliders: orthogonalising by effect takes what the sliders do. Connect the output effects of a "
            "Slider Report of these sliders to the input effects."
        )
    effects = effects_from(text)
    if missing := [p.slider.name for p in stack if p.slider.content_hash not in effects.hashes]:
        raise ValueError(
            f"Combine Sliders: the effects are those of {', '.join(effects.sliders)}; they were not measured of "
            f"{', '.join(missing)} as connected here. Run Slider Report on the sliders as they come in here."
        )
    return effects.of([placed.slider.content_hash for placed in stack])


def _made_of(stack: Stack, mixture: Tensor, row: int) -> str:
    """Say what a slider has become: "glasses: itself, -0.42 of age"."""
    parts = [
        f"{factor:+.2f} of {placed.slider.name}"
        for other, (placed, factor) in enumerate(zip(stack, mixture[row].tolist()))
        if other != row and abs(factor) >= SMALLEST_SAID
    ]
    return f"{stack[row].slider.name}: {', '.join(['itself', *parts])}"
