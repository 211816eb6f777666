"""What a run works out on the model by itself: etas before it, and after it what the slider has reached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..comfy_host.borrow import ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import RECOVERABLE_ERRORS, InterruptProcessingException, describe_error
from ..comfy_host.latents import packed
from ..comfy_host.predictor import Predictor
from .eta_choice import EtaChoice, choose_for, told_etas, warn_etas
from .reached import reached, told_reached
from .recipe import TextualRecipe
from .samples import SampleSource
from .strength_fit import Fit, fit_strength, told_fit, warn_fit
from .trainable_layers import TrainableLayers

log = logging.getLogger(__name__)


def choose_etas(
    patcher: ModelPatcher, conditionings: Mapping[str, list[Any]], recipe: TextualRecipe, latents: Tensor
) -> tuple[EtaChoice, ...]:
    """Return the etas of a recipe's concepts on a model, as training it there would choose them.

    conditionings: ComfyUI's CONDITIONING for every prompt of the recipe. latents: (B, C, ...), of the size to train
        at.
    """
    latents, shapes = packed(latents)
    entries = 2 * (2 + 2 * max(len(concept.phrases) for concept in recipe.concepts))
    memory = patcher.model.memory_required([entries, *latents.shape[1:]])
    with borrowed(patcher, memory_required=int(memory)):
        denoiser = Denoiser(patcher, {p: for_autograd(c) for p, c in conditionings.items()}, shapes)
        return tuple(choose_for(denoiser, concept, recipe, latents.shape[1:]) for concept in recipe.concepts)


def outcome(
    predictor: Predictor, layers: TrainableLayers, samples: SampleSource, note: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a run has chosen and what its slider has reached, for the header: some of `recipe.RunRecord`.

    note: is told, as the log is, of a measurement that fails or is cancelled, and is left out.
    """
    found = {"learning_rates": layers.learning_rates(), **samples.record()}
    try:
        found["reached"] = reached(predictor, layers, samples.held_out())
        if moves := samples.moves():
            fit = fit_strength(partial(moves, layers))
            found |= {"strengthened": fit.factor, "moved": fit.moved}
        return found
    except InterruptProcessingException:
        problem = "Training: what the slider has reached was not measured, as that was cancelled."
    except RECOVERABLE_ERRORS as error:
        problem = f"Training: what the slider has reached cannot be measured: {describe_error(error)}"
    log.warning(problem)
    note(problem)
    return found


def told_outcome(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Put what `outcome` returned into words, a line each. record: it, or the recipe in a slider's header."""
    low, high = (record["learning_rates"][name] for name in ("smallest", "largest"))
    rates = f"learning rates {low:.2g} to {high:.2g}, automatic" if low < high else ""
    fit = told_fit(fitted) if (fitted := _fit(record)) else ""
    lines = (told_reached(record.get("reached", {})), fit, told_etas(_choices(record)), rates)
    return tuple(line for line in lines if line)


def warn_outcome(record: Mapping[str, Any]) -> str:
    """Return a warning about what `outcome` returned; "" if there is none."""
    return warn_etas(_choices(record)) or (warn_fit(fit) if (fit := _fit(record)) else "")


def _fit(record: Mapping[str, Any]) -> Fit | None:
    return Fit(record["strengthened"], record["moved"]) if "moved" in record else None


def _choices(record: Mapping[str, Any]) -> list[EtaChoice]:
    return [EtaChoice(*each) for each in zip(record.get("etas", ()), record.get("audition_moved", ()), strict=True)]
