"""What sliders keep beside a model, as a model of its own in the host's memory management.

The host then counts it, gives its memory back when something else needs it, and does so whichever clone of the
model is loaded at the time, one with sliders or one without.
"""

from __future__ import annotations

import weakref
from typing import TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .model_state import ModelState

Values = TypeVar("Values")


class _Kept(nn.Module):
    """Stands for the workshop in the host's lists, without keeping it alive; it has no weights of its own."""

    def __init__(self, workshop: ModelState, device: torch.device) -> None:
        super().__init__()
        self.workshop = weakref.ref(workshop)
        self.device = device  # it is made where it is used, and never moved


class Holding(ModelPatcher):
    """A workshop as the host sees it: it cannot be moved off the device, only given back and made again."""

    @staticmethod
    def of(workshop: ModelState, model: ModelPatcher) -> Holding:
        """The one of this workshop, which belongs to the model."""
        if workshop.holding is None:
            kept = _Kept(workshop, model.load_device)
            workshop.holding = Holding(kept, model.load_device, model.offload_device)
        return workshop.holding

    def model_size(self) -> int:
        workshop = self.model.workshop()
        return 0 if workshop is None else workshop.size_bytes

    def loaded_size(self) -> int:
        return self.model_size()

    def partially_load(
        self, device_to: torch.device, extra_memory: int = 0, force_patch_weights: bool = False
    ) -> int:
        return 0

    def partially_unload(
        self, device_to: torch.device, memory_to_free: int = 0, force_patch_weights: bool = False
    ) -> int:
        """All of it goes, and the bytes that were held are returned."""
        size = self.model_size()
        self.detach()
        return size

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        workshop = self.model.workshop()
        if unpatch_all and workshop is not None:  # otherwise another clone takes over what is held
            workshop.clear()
        return self.model

    def deepclone_multigpu(self, new_load_device: torch.device | None = None, models_cache=None) -> Holding:
        """On another device the model is another one, with a workshop of its own."""
        return self.clone()


def free_unused() -> None:
    """Give memory that torch keeps and nothing uses back to the device."""
    comfy.model_management.soft_empty_cache()


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps what is handed from node to node, such as a prompt's encoding."""
    return comfy.model_management.intermediate_device()


def to_device(values: Values, device: torch.device) -> Values:
    """Copy lists, tuples and mappings with their tensors on a device and detached; all other values as they are."""
    return tree_map(lambda value: value.detach().to(device) if isinstance(value, Tensor) else value, values)
