"""Changes that ComfyUI's own code computes: LoHa, LoKr, DoRA, OFT, differences, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ..sliders.adapters.kind import DOWN, UP
from ..sliders.changes import Adapter, Dense, LowRank
from ..sliders.equation.module_changes import Patch
from ..sliders.equation.parameters import own_parameter
from .parameters import COMFY_PARAMETERS


class DecomposedLoRA(WeightAdapterBase):
    """DoRA as PEFT and ai-toolkit train it, as one of ComfyUI's weight adapters: see `sliders.adapters.lora`.

    weights: up, down, alpha or None, and a magnitude for each output, (out,).
    """

    name = "dora"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, Tensor, float | None, Tensor]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """W <- W + s (m V / |V| - W), V = W + (alpha / rank) up @ down; of a part of a weight, on that part."""
        up, down, alpha, magnitudes = self.weights
        up, down, magnitudes = (t.to(weight.device, intermediate_dtype) for t in (up, down, magnitudes))
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        turned = weight + function(scale * (up.flatten(1) @ down.flatten(1)).view_as(weight))  # V
        norms = turned.flatten(1).norm(dim=1).clamp(min=torch.finfo(turned.dtype).tiny)
        factors = function(magnitudes[:, None])[:, 0] / norms
        turned *= factors.view(-1, *(1 for _ in weight.shape[1:]))
        return weight.add_((turned - weight).to(weight.dtype), alpha=strength)


@dataclass(frozen=True, eq=False)
class ComfyPatch(Patch):
    """A change as ComfyUI's patches have it.

    parameter: the name of what it changes, within its module. value, offset, function: as ComfyUI's patches
    have them. scale: a factor of the strength. relative: True if the result depends on the weight itself.
    linear: True if twice the strength is twice the change; an OFT is applied with the square of the strength.
    """

    parameter: str
    value: Any
    offset: tuple[int, int, int] | None
    function: Any
    scale: float
    relative: bool
    linear: bool = True

    def changed(self, weight: Tensor, strength: float, name: str) -> Tensor:
        """Return the float32 weight after the change; the one that was given is written to.

        Raises ValueError, naming the layer, if ComfyUI did not apply it.
        """
        before, strength = weight.clone(), strength * self.scale
        changed = self._applied(weight, strength, name)
        if strength and (self._is_ignored(before, changed, name) or self._is_broken(before, changed, name)):
            raise ValueError(
                f"Layer {name}: its change cannot be applied to the model's {self.parameter} of shape "
                f"{tuple(before.shape)}. Was it made for another model? ComfyUI's log may say more."
            )
        return changed

    def _applied(self, weight: Tensor, strength: float, name: str) -> Tensor:
        patch = (strength, self.value, 1.0, self.offset, self.function)
        return comfy.lora.calculate_weight([patch], weight, name, intermediate_dtype=torch.float32)

    def _is_broken(self, before: Tensor, changed: Tensor, name: str) -> bool:
        """Return True if the change makes no numbers of the weight, and not for its strength alone."""
        if torch.isfinite(changed).all():
            return False
        return not torch.isfinite(self._applied(before.clone(), 1.0, name)).all()  # or see `overflow`

    def _is_ignored(self, before: Tensor, changed: Tensor, name: str) -> bool:
        """Return True if ComfyUI left the weight as it was: it logs errors of adapters, and goes on."""
        if not torch.equal(changed, before) or not all(t.any() for t in self._tensors()):
            return False
        return torch.equal(self._applied(before.clone(), 1.0, name), before)  # or it was too weak to be seen

    def multiplied(self, module: nn.Module, name: str) -> Dense:
        """Return the difference it makes to the module's parameter as it is now, in float32.

        Raises ValueError, naming the layer, if ComfyUI cannot apply it to a weight of this shape.
        """
        own = COMFY_PARAMETERS.value(module, self.parameter, own_parameter(module, self.parameter).device)
        return Dense({self.parameter: self.difference(own, name)})

    def _tensors(self) -> list[Tensor]:
        given = self.value[1] if isinstance(self.value, tuple) else self.value.weights
        return [t for t in given if isinstance(t, Tensor)]


def tensors_by_key(name: str, change: LowRank | Adapter) -> dict[str, Tensor]:
    """Return a change's tensors by the keys that the stock LoRA loader reads."""
    parts = {DOWN: change.down, UP: change.up} if isinstance(change, LowRank) else change.parts
    return {f"{name}.{ending}": tensor for ending, tensor in parts.items()}


def add_comfy_patches(
    clone: ModelPatcher | CLIP, tree: nn.Module, path: str, change: LowRank | ComfyPatch, strength: float
) -> None:
    """Let ComfyUI patch a layer, where sliders cannot act themselves.

    tree: the module tree that the path of the layer is in.
    Raises ValueError, naming the layer, if a change does not fit: ComfyUI itself would only log that.
    """
    if isinstance(change, ComfyPatch):
        change.multiplied(tree.get_submodule(path), path)
        key = (f"{path}.{change.parameter}", change.offset, change.function)
        clone.add_patches({key: change.value}, strength * change.scale)
    else:
        patches = comfy.lora.load_lora(tensors_by_key(path, change), {path: f"{path}.weight"}, log_missing=False)
        clone.add_patches(patches, strength)
