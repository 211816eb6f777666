"""Hooks that wrap a whole sampling run, and what a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.hooks
import comfy.k_diffusion.sampling
import comfy.patcher_extension
import torch
from comfy.hooks import EnumHookType, HookGroup
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

from ..sliders.gate import PercentToSigma

__all__ = ["CFGGuider", "HookedOptions", "RunHook", "group_of", "percent_to_sigma", "samples_by_euler"]


class HookedOptions(dict):
    """Options of an entry, whose copies carry the hook.

    ComfyUI looks for hooks before it copies an entry for a run. Where it sees any it loads a second model if the
    first is paged, for the sake of hooks that patch weights. This one patches none.
    """

    def __init__(self, options: Mapping[str, Any], hooks: HookGroup):
        super().__init__(options)
        self._hooks = hooks

    def copy(self) -> dict[str, Any]:
        return {**self, "hooks": self._hooks}


class RunHook(comfy.hooks.Hook):
    """Adds a wrapper around the run; it is not registered, so ComfyUI takes it off the entries again."""

    def __init__(self, key: str = "", around: Callable[..., Any] | None = None):
        super().__init__(hook_type=EnumHookType.TransformerOptions)
        self.key, self.around = key, around

    def clone(self) -> RunHook:
        clone = super().clone()
        clone.key, clone.around = self.key, self.around
        return clone

    def add_hook_patches(self, model: Any, model_options: dict, target_dict: dict, registered: HookGroup) -> bool:
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.OUTER_SAMPLE, self.key, self.around, model_options, is_model_options=True
        )
        return False


def group_of(hook: RunHook) -> HookGroup:
    """Return a group of one hook, as a CONDITIONING has it."""
    hooks = HookGroup()
    hooks.add(hook)
    return hooks


def samples_by_euler(sampler: Any) -> bool:
    """Return True if a sampler steps by Euler's method, with or without churn."""
    return getattr(sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_euler


def percent_to_sigma(model_sampling: Any, dtype: torch.dtype) -> PercentToSigma:
    """Return the model's map from fraction of sampling to sigma, rounded as ComfyUI rounds it when it compares."""

    def rounded(percent: float) -> float:
        return torch.tensor(float(model_sampling.percent_to_sigma(percent)), dtype=dtype).item()

    return rounded
