"""Hooks that wrap a whole sampling run, and what a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.hooks
import comfy.k_diffusion.sampling
import comfy.patcher_extension
from comfy.hooks import EnumHookType, HookGroup
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

__all__ = ["CFGGuider", "HookedOptions", "RunHook", "group_of", "samples_by_euler"]


class HookedOptions(dict):
    """Options of an entry, whose copies carry the hook.

    The host looks for hooks before it copies an entry for a run. Where it sees any it loads a second model if the
    first is paged, for the sake of hooks that patch weights. This one patches none.
    """

    def __init__(self, options: Mapping[str, Any], hooks: HookGroup):
        super().__init__(options)
        self._hooks = hooks

    def copy(self) -> dict[str, Any]:
        return {**self, "hooks": self._hooks}


class RunHook(comfy.hooks.Hook):
    """Adds a wrapper around the run; it is not registered, so the host takes it off the entries again."""

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
    """A group of one, as a CONDITIONING holds hooks."""
    hooks = HookGroup()
    hooks.add(hook)
    return hooks


def samples_by_euler(sampler: Any) -> bool:
    """Whether a sampler steps by Euler's method, with or without churn."""
    return getattr(sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_euler
