"""Names sliders at strengths that the model's numbers do not bear: what comes of them, NaN, does not say why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..sliders.changes import Dense, LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.module_changes import ModuleChange, parameters_of
from ..sliders.stack import Stack, StackedSlider
from .parameters import COMFY_PARAMETERS

log = logging.getLogger(__name__)

_MOST_NAMED = 3
_MUCH = 1.0  # a change as large as what it changes may well be the reason; at a strength of 1 it is a tenth at most


class _Reach(NamedTuple):
    """How far a slider goes: the size of its largest change of a parameter, relative to the model's own."""

    ratio: float
    layer: str
    placed: StackedSlider
    strength: float


def is_finite(numbers: Tensor) -> bool:
    """Return True if none of the numbers is NaN or infinite. On a GPU this waits for them."""
    return bool(torch.isfinite(numbers).all())


def check_answer(
    answer: Tensor,
    bare: Callable[[], Tensor],
    encoding: Tensor | None,
    stack: Stack,
    hooks: SliderHooks,
    strengths: Tensor,
) -> None:
    """Raise ValueError, naming sliders and strengths, if an answer of the model is not finite because of them.

    bare: evaluates the model without sliders. encoding: of the prompts. strengths: of the evaluation, (batch entries,
    sliders).
    """
    if is_finite(answer):
        return
    if is_finite(bare()):
        raise ValueError(_described(_reaches(stack, hooks, strengths)))
    of_text = [placed for placed in stack if placed.slider.text_layers and not placed.is_zero]
    if of_text and encoding is not None and not is_finite(encoding):
        named = ", ".join(f"'{each.slider.name}' at strength {each.strength[0]:g}" for each in of_text)
        raise ValueError(
            "The encoding of a prompt has numbers that are NaN or infinite, and sliders change the text encoder: "
            f"{named}. Lower the strength."
        )


def check_latent(latent: Tensor, stack: Stack, hooks: SliderHooks, strengths: Tensor) -> None:
    """Raise ValueError, naming sliders and strengths, if a run has ended with a latent that is not finite.

    A model may fail by itself: sliders are to blame if one changes a layer by more than the layer's own weight. The
    log says which of them goes the farthest if none does.
    """
    if is_finite(latent):
        return
    reaches = _reaches(stack, hooks, strengths)
    if reaches and reaches[0].ratio > _MUCH:
        raise ValueError(_described(reaches))
    log.warning(
        "The run has ended with numbers that are NaN or infinite. No slider changes a layer by more than the layer's "
        "own weight%s: the model, its precision or another node may be the reason, or strengths that add up.",
        f"; the farthest goes {_named(reaches[0])}" if reaches else "",
    )


def _described(reaches: list[_Reach]) -> str:
    strongest = [each for each in reaches if each.ratio > 0.1 * reaches[0].ratio][:_MOST_NAMED]
    named = "; ".join(map(_named, strongest))
    return f"With the sliders on, the model's numbers overflow to NaN or infinity. Lower the strength of {named}."


def _named(reach: _Reach) -> str:
    return (
        f"slider '{reach.placed.slider.name}' at strength {reach.strength:g}, where its change of {reach.layer} is "
        f"{reach.ratio:.2g} times as large as what the model has there"
    )


@torch.no_grad()
def _reaches(stack: Stack, hooks: SliderHooks, strengths: Tensor) -> list[_Reach]:
    """Return how far each slider that acts goes, the farthest first."""
    largest = {index: max(column.tolist(), key=abs) for index, column in enumerate(strengths.T)}
    found: dict[int, _Reach] = {}
    for module, path, changes in hooks.layers:
        for index, change in changes:
            if not largest[index]:
                continue
            ratio = abs(largest[index]) * _relative_size(change, module, path)
            if index not in found or ratio > found[index].ratio:
                found[index] = _Reach(ratio, path, stack[index], largest[index])
    return sorted(found.values(), key=lambda each: each.ratio, reverse=True)


def _relative_size(change: ModuleChange, module: nn.Module, path: str) -> float:
    """Return the size of a change at strength 1 relative to that of the parameter, |delta| / |W| of all numbers."""
    cpu = torch.device("cpu")
    ratios = [0.0]
    for parameter in parameters_of(change):
        own = COMFY_PARAMETERS.value(module, parameter, cpu)
        if isinstance(change, LowRank):
            up, down = (t.detach().flatten(1).to(cpu, torch.float64) for t in (change.up, change.down))
            size = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0).sqrt()  # |BA|^2 = tr(B'B AA')
        elif isinstance(change, Dense):
            size = change.differences[parameter].detach().to(cpu, torch.float64).norm()
        else:
            size = change.difference(own, path).double().norm()
        ratios.append(float(size / own.double().norm().clamp(min=1e-30)))
    return max(ratios)
