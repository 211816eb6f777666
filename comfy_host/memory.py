"""The memory of sliders, in ComfyUI's memory management and on its devices."""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .model_state import ModelState

Values = TypeVar("Values")


class _Placeholder(nn.Module):
    """Stands for a model state in ComfyUI's lists without keeping it alive. It has no weights of its own."""

    def __init__(self, state: ModelState, device: torch.device) -> None:
        super().__init__()
        self.state = weakref.ref(state)
        self.device = device  # what the state keeps is made where it is used, and never moved


class SliderMemory(ModelPatcher):
    """What sliders keep for a model, as a model of its own that cannot be moved off the device, only given back.

    ComfyUI then counts it, and gives it back when something else needs the memory, whichever clone of the model is
    loaded at the time, one with sliders or one without.
    """

    model: _Placeholder

    @staticmethod
    def of(state: ModelState, model: ModelPatcher) -> SliderMemory:
        """Return the one of this state, which belongs to the model."""
        if state.memory is None:
            placeholder = _Placeholder(state, model.load_device)
            state.memory = SliderMemory(placeholder, model.load_device, model.offload_device)
        return state.memory

    def model_size(self) -> int:
        state = self.model.state()
        return 0 if state is None else state.size_bytes

    def loaded_size(self) -> int:
        return self.model_size()

    def partially_load(
        self, device_to: torch.device, extra_memory: int = 0, force_patch_weights: bool = False
    ) -> int:
        return 0

    def partially_unload(
        self, device_to: torch.device, memory_to_free: int = 0, force_patch_weights: bool = False
    ) -> int:
        """Give back all of it, and return the bytes that it took."""
        size = self.model_size()
        self.detach()
        return size

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        state = self.model.state()
        if unpatch_all and state is not None:  # otherwise another clone takes over what is kept
            state.clear()
        return self.model

    def deepclone_multigpu(
        self, new_load_device: torch.device | None = None, models_cache: Any = None
    ) -> SliderMemory:
        """Return a clone: on another device the model is another one, with a state of its own."""
        return self.clone()


def free_unused() -> None:
    """Give memory that torch keeps and nothing uses back to the device."""
    comfy.model_management.soft_empty_cache()


def intermediate_device() -> torch.device:
    """Return where ComfyUI keeps what is handed from node to node, such as a prompt's encoding."""
    return comfy.model_management.intermediate_device()


def to_device(values: Values, device: torch.device) -> Values:
    """Copy lists, tuples and mappings with their tensors on a device and detached; all other values as they are."""
    return tree_map(lambda value: value.detach().to(device) if isinstance(value, Tensor) else value, values)
