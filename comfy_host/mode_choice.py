"""Which sliders of one evaluation are merged into the weights and which act unmerged, by hooks: a decision, no more.

Measured at SD1.5's size (`bench/runtime.py`), in evaluations with guidance: with fifty sliders, merged weights cost
0.6 when they are built at 512 px, 1.1 at 256 px, a tenth or less when one slider is turned, and nothing afterwards;
hooks cost 0.15 and 0.6 at first, nothing to change, and 0.2 in every evaluation, but with one to ten sliders less
than 0.1. So steady sliders are merged where the weights and the memory allow, if a few evaluations are still to come.
Sliders that differ between batch entries, have a ramp, or act on cond or uncond alone are never merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ..sliders.changes import LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.merged_weights import MergedWeights
from ..sliders.equation.weight_updates import bytes_needed, bytes_to_build, can_merge
from .batch_entries import Evaluation

AUTO, UNMERGED, MERGED = MODES = ("auto", "unmerged", "merged")
# Evaluations after which merging has paid for itself, by the figures above, and for sums of ranks below `FEW`
WORTH_IT, WORTH_IT_FOR_FEW, FEW = 4, 10, 32
_UNKNOWN_STEPS = 20  # assumed where ComfyUI does not say how many steps there are


@dataclass(frozen=True, eq=False)
class Situation:
    """What the choice depends on. Nothing in it is changed by choosing.

    strengths: (batch entries, sliders). steady: (sliders,), True for those that may be merged. mode: one of `MODES`.
    steady_states: how many sets of steady sliders act one after the other in a run, as gates open and close.
    """

    evaluation: Evaluation
    strengths: Tensor
    steady: Tensor
    mode: str
    steady_states: int
    hooks: SliderHooks
    merged: MergedWeights

    @property
    def steady_strengths(self) -> Tensor:
        """(sliders,), zero for the sliders that are not steady."""
        return self.strengths[0] * self.steady

    @property
    def is_prepared(self) -> bool:
        """True if the merged weights are those of these sliders already."""
        return self.merged.is_for(self.hooks.layers)


@dataclass(frozen=True)
class Obstacle:
    """A reason to merge nothing in an evaluation.

    stands: returns True where it is there. reason: what the log says about it to those who asked for merged weights.
    drops: merged weights that are there are given back. lasts: merging is not tried again in this run.
    """

    stands: Callable[[Situation], bool]
    reason: str = ""
    drops: bool = False
    lasts: bool = False


@dataclass(frozen=True, eq=False)
class Choice:
    """How the sliders act in one evaluation.

    merged: (sliders,), strengths of the sliders to merge. unmerged: (batch entries, sliders), of those that act by
    hooks. max_sets: the sets of merged weights that may be kept from now on, or None for as many as before.
    obstacle: why nothing is merged, or None.
    """

    merged: Tensor
    unmerged: Tensor
    max_sets: int | None = None
    obstacle: Obstacle | None = None


def choose(at: Situation) -> Choice:
    """Choose for one evaluation which strengths are merged. Reads the situation, and changes nothing."""
    obstacle = next((each for each in OBSTACLES if each.stands(at)), None)
    if obstacle is not None:
        return Choice(torch.zeros_like(at.strengths[0]), at.strengths, obstacle=obstacle)
    return Choice(at.steady_strengths, at.strengths * ~at.steady, _sets_to_keep(at))


def room_beside(base_model: BaseModel, x: Tensor) -> float:
    """Return the free memory in bytes, beyond what ComfyUI counts on for evaluating the batch x (B, C, ...)."""
    return comfy.model_management.get_free_memory(x.device) - base_model.memory_required(list(x.shape))


def evaluations_left(transformer_options: Mapping[str, Any]) -> int:
    """Return how many steps of sampling are left, this one included."""
    sigmas, now = transformer_options.get("sample_sigmas"), transformer_options.get("sigmas")
    if sigmas is None or now is None:
        return _UNKNOWN_STEPS
    return int((sigmas.to(now)[:-1] <= now.flatten()[0]).sum())


def worth_it(hooks: SliderHooks) -> int:
    """Return after how many evaluations merging has paid for itself: the hooks of few sliders cost little."""
    ranks = (sum(c.rank if isinstance(c, LowRank) else FEW for _, c in changes) for _, _, changes in hooks.layers)
    return WORTH_IT_FOR_FEW if max(ranks, default=0) < FEW else WORTH_IT


def _are_weights_elsewhere(at: Situation) -> bool:
    """ComfyUI has moved weights off the device for want of memory: merged ones would only add to it."""
    tensors = (tensor for module, _, _ in at.hooks.layers for tensor in module._parameters.values())
    return any(tensor is not None and tensor.device != at.evaluation.x.device for tensor in tensors)


def _is_nothing_to_merge(at: Situation) -> bool:
    return at.mode == UNMERGED or at.evaluation.run.merging_refused or not bool(at.steady_strengths.any())


def _is_paged(at: Situation) -> bool:
    patcher = at.evaluation.patcher
    return patcher is not None and patcher.is_dynamic()


def _has_weight_hooks(at: Situation) -> bool:
    patcher = at.evaluation.patcher
    return patcher is not None and patcher.current_hooks is not None


def _is_not_plain(at: Situation) -> bool:
    changed_at_use = any(
        getattr(module, "weight_function", None) or getattr(module, "bias_function", None)
        for module, _, _ in at.hooks.layers
    )
    return changed_at_use or not can_merge(at.hooks.layers)


def _do_others_depend(at: Situation) -> bool:
    """Changes that depend on each other have to be computed together, and some of them cannot be merged."""
    return bool(at.strengths[:, ~at.steady].any()) and at.hooks.depend_on_each_other(at.strengths)


def _does_not_pay(at: Situation) -> bool:
    """Too few evaluations are left, or the merged weights of another stack have not paid for themselves yet.

    Two stacks on clones of one model would otherwise take each other's place in every evaluation of a run.
    """
    if at.mode != AUTO or at.is_prepared:
        return False
    is_taken = at.evaluation.run.merged_evaluations > 0 and at.merged.uses < WORTH_IT
    return is_taken or evaluations_left(at.evaluation.options) < worth_it(at.hooks)


def _is_no_room(at: Situation) -> bool:
    """One set of merged weights does not fit, in addition to what is there, or in its place."""
    layers, there = at.hooks.layers, at.merged.size_bytes + at.merged.products_bytes
    needed = bytes_needed(layers) + bytes_to_build(layers) - there
    return not at.is_prepared and needed > room_beside(at.evaluation.base_model, at.evaluation.x)


OBSTACLES = (  # in this order: what comes later costs more to find out
    Obstacle(_are_weights_elsewhere, drops=True),
    Obstacle(_is_nothing_to_merge),
    Obstacle(_is_paged, "ComfyUI pages the model's weights in as they are used"),
    Obstacle(_has_weight_hooks, "weight hooks rewrite the model's weights between evaluations"),
    Obstacle(_is_not_plain, "some of the model's weights are quantised, in 8 bits, or patched as they are used"),
    Obstacle(_do_others_depend),
    Obstacle(_does_not_pay),
    Obstacle(_is_no_room, "there is no memory for it", lasts=True),
)


def _sets_to_keep(at: Situation) -> int | None:
    """Return how many sets of merged weights to keep: one more, if there is room, for sliders with none yet."""
    if not at.is_prepared or at.merged.is_ready_for(at.steady_strengths):
        return None
    fits = bytes_needed(at.hooks.layers) <= room_beside(at.evaluation.base_model, at.evaluation.x)
    return min(at.steady_states, at.merged.set_count + int(fits))
