"""Where a model has the layers that are merged, and what changes of any kind make of its weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..sliders.changes import Change
from ..sliders.equation.module_changes import apply_changes, of_parameter, parameters_of
from ..sliders.formats.conversion import WeightSlice
from ..sliders.slider import Slider
from .layer_changes import changes_in
from .layer_finder import LayerFinder, Placement
from .parameters import COMFY_PARAMETERS


class ComfyModelWeights:
    """The weights of a diffusion model by the layer names of slider files, for `merge_sliders.merge`."""

    def __init__(self, model: ModelPatcher) -> None:
        self._model = model
        self._finder = LayerFinder.of_model(model.model)
        self._placements: dict[str, Placement] = {}  # by the content of the slider

    def slice_of(self, slider: Slider, name: str) -> Hashable:
        """Return what the name of a slider's layer stands for, the same for all its names; the name if unknown."""
        targets = self._placement(slider).targets
        return WeightSlice.of(targets[name]) if name in targets else name

    @torch.no_grad()
    def differences(self, name: str, changes: Sequence[tuple[Slider, Change, float]]) -> dict[str, Tensor]:
        """Return what changes of one layer, in order and at strengths, add to each of its parameters, in float32.

        name: the layer's in the first of these sliders. Those that depend on the weight act on the model's own,
        without any patches, as those before have left it.
        Raises ValueError if the model has no such layer, takes its outputs in another order, or a change does not
        fit.
        """
        placement = self._placement(changes[0][0])
        if name in placement.misfits:
            raise ValueError(placement.misfits[name])
        weight = WeightSlice.of(placement.targets[name]) if name in placement.targets else None
        if weight is None or weight.order is not None:
            raise ValueError(
                f"Layer {name}: changes that are not all low-rank products meet in it, and they cannot be multiplied "
                "out: it is not a layer that this model has as it is."
            )
        tree, target = self._model.model, placement.targets[name]
        parts = [
            (index, path, part)
            for index, (_, change, _) in enumerate(changes)
            for path, part in changes_in(tree, change, name, target)
        ]
        path = parts[0][1]
        own = [(index, part) for index, _, part in parts]
        strengths = torch.tensor([strength for *_, strength in changes])
        found = {}
        for parameter in sorted({p for _, part in own for p in parameters_of(part)}):
            before = self._own(path, parameter)
            after = apply_changes(before.clone(), parameter, of_parameter(parameter, own), strengths, name)
            found[parameter] = _part_of(after - before, weight)
        return found

    def _placement(self, slider: Slider) -> Placement:
        """Return where a slider's layers are in the model."""
        if slider.content_hash not in self._placements:
            self._placements[slider.content_hash] = self._finder.place(slider.model_layers)
        return self._placements[slider.content_hash]

    def _own(self, path: str, parameter: str) -> Tensor:
        """Return the model's parameter as its file has it, also while ComfyUI has it patched."""
        module, backup = self._model.model.get_submodule(path), self._model.backup.get(f"{path}.{parameter}")
        if backup is not None:
            return backup.weight.detach().to("cpu", torch.float32)
        return COMFY_PARAMETERS.value(module, parameter, torch.device("cpu"))


def _part_of(difference: Tensor, weight: WeightSlice) -> Tensor:
    """Return the rows of the slice; of a bias, where they are its outputs."""
    if weight.part is None or (difference.ndim == 1 and weight.part[0] != 0):
        return difference
    return difference.narrow(*weight.part).clone()
