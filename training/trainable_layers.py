"""The layers of one slider while it is being trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.match import layer_names
from ..comfy_host.prompt_layers import prepares_prompts
from ..sliders.changes import Adapter, Change, Dense, LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.layer_kinds import is_linear, weight_shape
from .layer_choice import choose_layers
from .recipe import Recipe


class TrainableLayers:
    """The changes of a new slider, hooked into the borrowed model.

    names: the names in a file of the layers that may be trained, by path; the diffusion model's if not given, but for
        those that prepare prompts: ComfyUI runs them once, before any prediction that could teach them.
    by_name: the changes by those names; their tensors are the parameters that learn.
    Raises ValueError if the recipe's choice takes no layer of the model.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        recipe: Recipe,
        generator: torch.Generator,
        names: Mapping[str, str] | None = None,
    ):
        self.scale = recipe.scale
        self.by_name: dict[str, LowRank | Dense] = {}
        if names is None:
            names = {p: name for p, name in layer_names(patcher).items() if not prepares_prompts(patcher.model, p)}
        modules = {path: patcher.model.get_submodule(path) for path in names}
        paths = [path for path, module in modules.items() if recipe.convolutions or is_linear(module)]
        placed = {}
        for path in choose_layers(paths, recipe.layers, recipe.pattern):
            shape = weight_shape(modules[path], path)
            self.by_name[names[path]] = change = _fresh(shape, recipe, generator, patcher.load_device)
            placed[modules[path]] = [(0, change)]
        self._hooks = SliderHooks(placed, {module: path for path, module in modules.items()})

    def acting(self, strengths: Tensor) -> AbstractContextManager[None]:
        """Let the slider act within the block, at strengths (B, 1); see `SliderHooks.acting`."""
        return self._hooks.acting(strengths * self.scale)

    def parameters(self) -> list[nn.Parameter]:
        tensors = [tensor for change in self.by_name.values() for tensor in change.parts.values()]
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    def finished(self) -> dict[str, Change]:
        """Return the trained changes as copies on the CPU, with the scale folded in."""
        return {name: self._finished(change) for name, change in self.by_name.items()}

    def _finished(self, change: LowRank | Dense) -> Change:
        copies = [tensor.detach().cpu().clone() for tensor in change.parts.values()]
        if isinstance(change, Dense):
            return Adapter({"diff": copies[0]})
        return LowRank(copies[0], copies[1] * self.scale)


def _fresh(
    shape: tuple[int, ...], recipe: Recipe, generator: torch.Generator, device: torch.device
) -> LowRank | Dense:
    """Return a change in float32 that has no effect yet."""
    if recipe.full_rank:
        return Dense({"weight": nn.Parameter(torch.zeros(shape, device=device))})
    fresh = LowRank.fresh(shape, recipe.rank, generator)
    return LowRank(*(nn.Parameter(tensor.to(device)) for tensor in (fresh.down, fresh.up)))
