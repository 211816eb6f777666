"""Which sliders are merged and which act unmerged, in one evaluation.

Measured at SD1.5's size (`bench/runtime.py`), in evaluations with guidance: with fifty sliders, merged weights cost
0.6 when they are built at 512 px, 1.1 at 256 px, a tenth or less when one slider is turned, and nothing afterwards;
acting by rows costs 0.15 and 0.6 at first, nothing to change, and 0.2 in every evaluation, but with one to ten
sliders less than 0.1. So what holds still for a few evaluations is merged where the weights and the memory allow, and
what differs between rows, ramps, or acts on one branch goes by rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ..sliders.changes import LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.weight_updates import bytes_needed, bytes_to_build, can_merge
from .model_state import Run, state_of

log = logging.getLogger(__name__)

AUTO, UNMERGED, MERGED = MODES = ("auto", "unmerged", "merged")
# Evaluations after which merging has paid for itself, by the figures above, and for sums of ranks below `FEW`
WORTH_IT, WORTH_IT_FOR_FEW, FEW = 4, 10, 32
_UNKNOWN_STEPS = 20  # where the host does not say how many there are


def steady_part(
    strengths: Tensor,
    steady: Tensor,
    mode: str,
    bank: SliderHooks,
    base_model: BaseModel,
    x: Tensor,
    options: Mapping[str, Any],
    run: Run,
    states: int = 1,
) -> Tensor:
    """The strengths to merge in this evaluation, (sliders,), for which there is room then; zeros if none.

    strengths: (rows, sliders). steady: (sliders,), whether each may be merged. x: the batch. options: the host's
    transformer options. run: the one that this evaluation belongs to. states: how many sets of sliders act one after
    the other in a run, as gates open and close.
    """
    still, nothing = strengths[0] * steady, torch.zeros_like(strengths[0])
    merged = state_of(base_model).merged
    if not _lie_ready(bank, x):
        merged.drop()  # the host has moved weights off the device for want of memory: these would only add to it
        return nothing
    if mode == UNMERGED or run.refused or not still.any():
        return nothing
    if why_not := _why_not_merged(bank, base_model):
        _say_why_not(run, mode, why_not)
        return nothing
    if strengths[:, ~steady].any() and bank.depend_on_each_other(strengths):
        return nothing  # they are worked out together, or they would be something else
    if merged.is_for(bank.layers):
        if not merged.is_ready_for(still):
            room = room_beside(base_model, x)
            merged.max_sets = min(states, merged.set_count + int(bytes_needed(bank.layers) <= room))
    elif mode == AUTO and (_is_taken(merged.uses, run.merged) or evaluations_left(options) < worth_it(bank)):
        return nothing
    elif not _is_room(bank, base_model, x):
        run.refused = True
        _say_why_not(run, mode, "there is no memory for it")
        return nothing
    else:
        merged.prepare(bank.layers)
    run.merged += 1
    return still


def worth_it(bank: SliderHooks) -> int:
    """After how many evaluations merging has paid for itself: few sliders cost little by rows, see above."""
    ranks = (sum(c.rank if isinstance(c, LowRank) else FEW for _, c in changes) for _, _, changes in bank.layers)
    return WORTH_IT_FOR_FEW if max(ranks, default=0) < FEW else WORTH_IT


def _say_why_not(run: Run, mode: str, why: str) -> None:
    """Nothing is merged; where that was asked for by name, the log says why, once a run."""
    if mode == MERGED and not run.told:
        run.told = True
        log.warning("Sliders act by rows although they are to be merged: %s.", why)


def _is_taken(uses: int, of_them_in_this_run: int) -> bool:
    """Whether another stack's merged weights are in use, and have not paid for themselves yet.

    Two stacks on clones of one model, in one run, would otherwise take the place from each other every time.
    """
    return of_them_in_this_run > 0 and uses < WORTH_IT


def _is_room(bank: SliderHooks, base_model: BaseModel, x: Tensor) -> bool:
    """Whether one set of merged weights fits, in addition to what is there, or in its place."""
    there = state_of(base_model).merged
    needed = bytes_needed(bank.layers) + bytes_to_build(bank.layers) - there.size_bytes - there.products_bytes
    return needed <= room_beside(base_model, x)


def room_beside(base_model: BaseModel, x: Tensor) -> float:
    """The free memory in bytes, beyond what the host counts on for evaluating the batch x."""
    return comfy.model_management.get_free_memory(x.device) - base_model.memory_required(list(x.shape))


def evaluations_left(options: Mapping[str, Any]) -> int:
    """How many steps of sampling are left, this one included."""
    sigmas, now = options.get("sample_sigmas"), options.get("sigmas")
    if sigmas is None or now is None:
        return _UNKNOWN_STEPS
    return int((sigmas.to(now)[:-1] <= now.flatten()[0]).sum())


def _lie_ready(bank: SliderHooks, x: Tensor) -> bool:
    """Whether the layers' weights are on the device of the batch."""
    return all(
        tensor is None or tensor.device == x.device
        for module, _, _ in bank.layers
        for tensor in module._parameters.values()
    )


def _why_not_merged(bank: SliderHooks, base_model: BaseModel) -> str:
    """Why the layers' weights cannot be stood in for; "" where they are plain tensors, and stay as they are."""
    patcher = getattr(base_model, "current_patcher", None)
    if patcher is not None and patcher.is_dynamic():
        return "ComfyUI pages the model's weights in as they are used"
    if patcher is not None and patcher.current_hooks is not None:
        return "weight hooks rewrite the model's weights between evaluations"
    waiting = any(
        getattr(module, "weight_function", None) or getattr(module, "bias_function", None)
        for module, _, _ in bank.layers
    )
    if waiting or not can_merge(bank.layers):
        return "some of the model's weights are quantised, in 8 bits, or patched as they are used"
    return ""
