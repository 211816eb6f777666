"""Runs in which a second model answers for the first: what gates and sliders on cond or uncond are to equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.batch_entries import EntryGroup, evaluate_groups
from torch import Tensor


def changing_over(model: ModelPatcher, second: ModelPatcher, start: float, seen: list[bool]) -> ModelPatcher:
    """A clone of the model in which a second one answers from a fraction of sampling on.

    seen: filled with whether it did, evaluation by evaluation.
    """
    opens = model.model.model_sampling.percent_to_sigma(start)

    def by_hand(apply_model: Callable[..., Tensor], args: Mapping[str, Any]) -> Tensor:
        inside = bool(args["timestep"][0] <= opens)
        seen.append(inside)
        run = second.model.apply_model if inside else apply_model
        return run(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(by_hand)
    return clone


def answered_by(model: ModelPatcher, second: ModelPatcher, on: int, one_by_one: bool = False) -> ModelPatcher:
    """A clone of the model in which a second one answers the prompt that ComfyUI numbers `on`.

    Both answer ComfyUI's whole batch, and each answer is taken from one of them; or each prompt is asked alone.
    """

    def by_hand(apply_model: Callable[..., Tensor], args: Mapping[str, Any]) -> Tensor:
        x, chunks, given = args["input"], args["cond_or_uncond"], dict(args["c"])
        options, given["t"] = given.pop("transformer_options"), args["timestep"]
        asked = [second.model.apply_model if chunk == on else apply_model for chunk in chunks]
        if one_by_one:
            nothing = torch.zeros(1, 0)
            parts = [
                EntryGroup(entries, nothing, (n,))
                for n, entries in enumerate(torch.arange(len(x)).chunk(len(chunks)))
            ]
            return evaluate_groups(
                lambda part, x, c, o: asked[part.chunks[0]](x, **c, transformer_options=o), parts, x, given, options
            )
        answers = [ask(x, **given, transformer_options=options).chunk(len(chunks)) for ask in asked]
        return torch.cat([answer[n] for n, answer in enumerate(answers)])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(by_hand)
    return clone
