"""Sliders put on ComfyUI's models, as wrappers around their evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..sliders.stack import Stack
from .acting_stack import ActingStack, acting_on
from .cond_uncond import track_prompts
from .match import layers_of
from .memory import SliderMemory
from .mode_choice import AUTO
from .model_state import KEY, ModelState, state_of
from .prompt_layers import patch_prompt_layers


def apply_sliders(
    model: ModelPatcher, stack: Stack, mode: str = AUTO, warn: Callable[[str], None] = lambda text: None
) -> ModelPatcher:
    """Return a clone of the model on which the stack acts, in addition to the stacks applied to it before.

    mode: "auto", "unmerged" or "merged", see `mode_choice`. Text-encoder layers are left to `text_encoders`; those
    that prepare prompts to `prompt_layers`.
    warn: is told while the model samples, once a run, as the log is, why sliders act in another way than by the mode.
    Raises ValueError if a slider's layers match nothing in the model or do not fit it.
    """
    clone = model.clone()
    if not len(stack):
        return clone
    state, before = state_of(model.model), acting_on(model)
    matches = tuple(layers_of(each.slider, model.model, state) for each in stack)
    for each, match in zip(stack, matches, strict=True):
        patch_prompt_layers(clone, each, match)
    if before is not None:
        stack, matches = before.stack + stack, before.matches + matches
    _wrap(clone, ActingStack(stack, matches, mode, model.model, warn), state)
    return clone


def _wrap(clone: ModelPatcher, acting: ActingStack, state: ModelState) -> None:
    """Put a stack's wrappers and callbacks on a model, in the place of those of a stack before."""
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, acting), (WrappersMP.OUTER_SAMPLE, _enclose_run)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    if not clone.get_callbacks(CallbacksMP.ON_DETACH, KEY):
        clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _give_memory_back)
        clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, KEY, _act_on_second_model)
        if not clone.is_dynamic():  # for memory that is not paged, ComfyUI would move paged models off the device
            clone.set_additional_models(KEY, [SliderMemory.of(state, clone)])
    if any(each.cond_or_uncond != "both" for each in acting.stack):
        track_prompts(clone)


def _enclose_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap a guider's whole run: what is only true of one run ends with it, however it ends."""
    patcher = executor.class_obj.model_patcher
    with state_of(patcher.model).one_run(patcher.is_dynamic()):
        latent = executor(*args, **kwargs)
        if (check := state_of(patcher.model).run.check_latent) is not None:
            check(latent)
        return latent


def _act_on_second_model(model: ModelPatcher, timestep: Tensor, model_options: dict[str, Any]) -> None:
    """Add a model's wrapper to the options of an evaluation, which are a copy made for the run.

    A guider of two models asks both of them with the options of the first.
    """
    wrappers = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers.setdefault(WrappersMP.APPLY_MODEL, {}).setdefault(KEY, model.get_wrappers(WrappersMP.APPLY_MODEL, KEY))


def _give_memory_back(model: ModelPatcher, unpatch_all: bool) -> None:
    """Drop what sliders keep on a model's device when ComfyUI unloads the model."""
    if unpatch_all:
        state_of(model.model).clear()
