"""ComfyUI's two methods of keeping weights elsewhere until a layer runs, also where there is no other place.

Short of memory, its plain patcher leaves layers where they are, and has their patches worked out as they run. Its
dynamic patcher, the usual one on a GPU, pages all larger weights in so; on a CPU ComfyUI makes none, and its layers
would leave out the patches.
"""

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic

CPU = torch.device("cpu")


class DynamicOnTheCpu(ModelPatcherDynamic):
    """ComfyUI's dynamic patcher and its own loading, where ComfyUI would make a plain one."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    @staticmethod
    def of(model: ModelPatcher) -> "DynamicOnTheCpu":
        """The same module tree in such a patcher."""
        return DynamicOnTheCpu(model.model, CPU, CPU)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        """ComfyUI's own, but for what it has on a device only."""
        return self.restore_loaded_backups()


def paging_cast(cast: Callable) -> Callable:
    """ComfyUI's cast of a layer's weights for its input, with the patches of paged weights.

    On a device it applies them itself, before the functions that a layer has.
    """

    def paged(layer, *args, **kwargs):
        waiting = {p: getattr(layer, f"{p}_lowvram_function", None) for p in ("weight", "bias")}
        kept = {p: layer.__dict__.get(f"{p}_function") for p, patch in waiting.items() if patch is not None}
        try:
            for parameter in kept:
                setattr(layer, f"{parameter}_function", [waiting[parameter], *(kept[parameter] or ())])
            return cast(layer, *args, **kwargs)
        finally:
            for parameter, functions in kept.items():
                setattr(layer, f"{parameter}_function", functions)

    return paged


def load_all(patcher: ModelPatcher) -> None:
    """All weights in their place, patched."""
    patcher.patch_model(CPU)


def load_in_part(patcher: ModelPatcher) -> None:
    """Half of the weights in their place; the others' patches wait for the layers to run."""
    patcher.patch_model(CPU, lowvram_model_memory=patcher.model_size() // 2)


def load_none(patcher: ModelPatcher) -> None:
    """No weight in its place."""
    patcher.patch_model(CPU, lowvram_model_memory=1)


def page(patcher: DynamicOnTheCpu) -> None:
    """All larger weights paged."""
    patcher.patch_model(load_weights=False)
    patcher.load(CPU, dirty=True)


def waiting_patches(model: ModelPatcher) -> int:
    """How many layers have patches that wait until they run."""
    names = ("weight_function", "weight_lowvram_function")
    return sum(any(getattr(module, name, None) for name in names) for module in model.model.modules())
