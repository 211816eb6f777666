"""Tells which chunks of ComfyUI's batch are cond, predicted for the positive prompt, and which are uncond.

ComfyUI numbers the chunks by their index in the list of prompts that a guider evaluates at once. Which index is the
positive prompt depends on the guider: [positive, negative] in plain guidance, [negative, middle, positive] with Dual
CFG, [negative] alone where self-attention guidance evaluates again. So it is found here by the name that each prompt
has when the run is prepared.

Every prompt is one or the other: positive is the guider's prompt of that name, and negative are all others, as
ComfyUI itself has it when it marks Dual CFG's second prompt and Perp-Neg's empty one as negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP, add_wrapper_with_key

COND, UNCOND = "cond", "uncond"
_POSITIVE = "positive"  # ComfyUI's name of the prompt that cond is predicted for
_KEY = "concept_sliders.cond_or_uncond"
Entry = Mapping[str, Any]  # one conditioning of a prompt, as ComfyUI's samplers have it


def track_prompts(clone: ModelPatcher) -> None:
    """Let runs of this patcher find out which prompts are positive, see `cond_or_uncond_of`."""
    if not clone.get_wrappers(WrappersMP.CALC_COND_BATCH, _KEY):
        # among the options: a guider of two models prepares the second one with these, and not with its wrappers
        add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _note_prompts, clone.model_options, True)
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, _name_lists)
        clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, _KEY, _forget_prompts)


def cond_or_uncond_of(base_model: BaseModel, options: Mapping[str, Any]) -> list[str]:
    """Return "cond" or "uncond" for each of the chunks that ComfyUI's batch is made of.

    options: ComfyUI's transformer options. Where no guider is at work, chunk 0 is the positive one.
    """
    chunks = options.get("cond_or_uncond", (0,))
    if _KEY in options:
        return [options[_KEY][chunk] for chunk in chunks]
    # a guider that asks this model with another model's options, as Dual Model CFG does: no list was named
    prompts = _prompts_of(base_model)
    if prompts and "uuids" in options:
        return [prompts.get(uuid, UNCOND) for uuid in options["uuids"]]
    return [_by_number(chunk) for chunk in chunks]


def _note_prompts(
    executor: Any, model: ModelPatcher, noise_shape: Sequence[int], conds: Mapping[str, list[Entry]], *args, **kwargs
) -> Any:
    """Wrap the preparation of a run, the one place that is given each prompt by its name."""
    noted = {entry["uuid"]: _called(name, entry) for name, entries in conds.items() for entry in entries}
    model.set_attachments(_KEY, noted)
    return executor(model, noise_shape, conds, *args, **kwargs)


def _called(name: str, entry: Entry) -> str:
    kind = entry.get("prompt_type", name)  # ComfyUI's own mark of a prompt, where there is one
    return COND if kind == _POSITIVE else UNCOND


def _forget_prompts(model: ModelPatcher) -> None:
    model.remove_attachments(_KEY)


def _prompts_of(base_model: BaseModel) -> Mapping[UUID, str]:
    patcher = base_model.current_patcher
    return (patcher and patcher.get_attachment(_KEY)) or {}


def _name_lists(
    executor: Any, model: BaseModel, conds: list[list[Entry] | None], x: Any, timestep: Any, model_options: dict
) -> Any:
    """Wrap the evaluation of several prompts at once, and note in the options which lists of entries are cond."""
    options = model_options.setdefault("transformer_options", {})
    prompts, outer = _prompts_of(model), options.get(_KEY)
    options[_KEY] = tuple(_kind_of(entries, prompts, index) for index, entries in enumerate(conds))
    try:
        return executor(model, conds, x, timestep, model_options)
    finally:
        del options[_KEY]
        if outer is not None:
            options[_KEY] = outer


def _kind_of(entries: list[Entry] | None, prompts: Mapping[UUID, str], index: int) -> str:
    """Return "cond" or "uncond" by the first entry: copies of other prompts' regions may follow it."""
    first = next(iter(entries or ()), None)
    if first is None or not prompts:
        return _by_number(index)
    if first["uuid"] in prompts:
        return prompts[first["uuid"]]
    return _called("negative", first)


def _by_number(chunk: int) -> str:
    return UNCOND if chunk else COND
