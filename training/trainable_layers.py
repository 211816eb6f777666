"""The layers of a slider, or of several, while they are being trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.match import layer_names
from ..comfy_host.parameters import weight_rms
from ..comfy_host.prompt_layers import prepares_prompts
from ..sliders.changes import Adapter, Change, Dense, LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.layer_kinds import is_linear, weight_shape
from .layer_choice import choose_layers
from .recipe import Recipe
from .step_sizes import LayerSize


class TrainableLayers:
    """The changes of new sliders, hooked into the borrowed model.

    Those of all sliders in one layer are one change, of which each slider has `recipe.rank` rows and columns.

    names: the names in a file of the layers that may be trained, by path; the diffusion model's if not given, but for
        those that prepare prompts: ComfyUI runs them once, before any prediction that could teach them.
    count: how many sliders; of full rank, one.
    by_name: the changes by those names; their tensors are the parameters that learn.
    Raises ValueError if the recipe's choice takes no layer of the model.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        recipe: Recipe,
        generator: torch.Generator,
        names: Mapping[str, str] | None = None,
        count: int = 1,
    ):
        self.scale, self.recipe, self.count = recipe.scale, recipe, count
        self.by_name: dict[str, LowRank | Dense] = {}
        self._sizes: dict[str, LayerSize] = {}
        if names is None:
            names = {p: name for p, name in layer_names(patcher).items() if not prepares_prompts(patcher.model, p)}
        modules = {path: patcher.model.get_submodule(path) for path in names}
        paths = [path for path, module in modules.items() if recipe.convolutions or is_linear(module)]
        placed = {}
        for path in choose_layers(paths, recipe.layers, recipe.pattern):
            shape = weight_shape(modules[path], path)
            self.by_name[names[path]] = change = _fresh(shape, recipe, count, generator, patcher.load_device)
            placed[modules[path]] = [(index, self._of(index, change)) for index in range(count)]
            if not recipe.learning_rate:
                self._sizes[names[path]] = LayerSize(shape, weight_rms(modules[path], patcher.load_device))
        self._hooks = SliderHooks(placed, {module: path for path, module in modules.items()})

    def acting(self, strengths: Tensor) -> AbstractContextManager[None]:
        """Let the sliders act within the block, at strengths (B, count); see `SliderHooks.acting`."""
        return self._hooks.acting(strengths * self.scale)

    def parameters(self) -> list[nn.Parameter]:
        tensors = [tensor for change in self.by_name.values() for tensor in change.parts.values()]
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters and their learning rates, as optimisers take them.

        Rates are rounded to two digits, so that layers share groups: each costs an optimiser calls of its own.
        """
        if self.recipe.learning_rate:
            return [{"params": self.parameters(), "lr": self.recipe.learning_rate}]
        by_rate: defaultdict[float, list[Tensor]] = defaultdict(list)
        for name, change in self.by_name.items():
            for tensor, rate in zip(change.parts.values(), self._rates(self._sizes[name]), strict=True):
                by_rate[float(f"{rate:.1e}")].append(tensor)
        return [{"params": tensors, "lr": rate} for rate, tensors in by_rate.items()]

    def learning_rates(self) -> dict[str, float]:
        """Return what the learning rates are, over all tensors: the smallest, the median and the largest."""
        rates = [group["lr"] for group in self.parameter_groups() for _ in group["params"]]
        return {"smallest": min(rates), "median": median(rates), "largest": max(rates)}

    def _rates(self, size: LayerSize) -> tuple[float, ...]:
        """The learning rates of a change's tensors, in their order."""
        recipe = self.recipe
        if recipe.full_rank:
            return (size.rate_dense(recipe.rho),)
        return size.rate_down(recipe.rho), size.rate_up(recipe.rho, recipe.rank, recipe.scale)

    def finished(self, index: int = 0) -> dict[str, Change]:
        """Return the trained changes of one slider as copies on the CPU, with the scale folded in."""
        return {name: self._finished(self._of(index, change)) for name, change in self.by_name.items()}

    def _of(self, index: int, change: LowRank | Dense) -> LowRank | Dense:
        """Return one slider's part of a change, on the same memory."""
        if isinstance(change, Dense) or self.count == 1:
            return change
        own = slice(index * self.recipe.rank, (index + 1) * self.recipe.rank)
        return LowRank(change.down[own], change.up[:, own])

    def _finished(self, change: LowRank | Dense) -> Change:
        copies = [tensor.detach().cpu().clone() for tensor in change.parts.values()]
        if isinstance(change, Dense):
            return Adapter({"diff": copies[0]})
        return LowRank(copies[0], copies[1] * self.scale)


def _fresh(
    shape: tuple[int, ...], recipe: Recipe, count: int, generator: torch.Generator, device: torch.device
) -> LowRank | Dense:
    """Return a change in float32, of `count` sliders, that has no effect yet."""
    if recipe.full_rank:
        return Dense({"weight": nn.Parameter(torch.zeros(shape, device=device))})
    fresh = LowRank.fresh(shape, recipe.rank * count, generator)
    return LowRank(*(nn.Parameter(tensor.to(device)) for tensor in (fresh.down, fresh.up)))
