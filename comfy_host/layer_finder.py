"""Finds the layers of a slider in a model: by their names, and where names leave a choice, by their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import comfy.lora
from comfy.model_base import BaseModel
from torch import nn

from ..sliders.changes import Change, LowRank
from ..sliders.formats.layer_index import LayerIndex, Target, common_fronts, encoder_paths, model_paths
from .diffusers_layers import diffusers_layers
from .layer_changes import changes_in
from .weight_adapters import ComfyPatch

Placed = tuple[tuple[str, LowRank | ComfyPatch], ...]  # what a change does: (path of the module, change) pairs
Readings = Callable[[str], tuple[Target, ...]]


@dataclass(frozen=True)
class Placement:
    """Where a slider's layers are in a model.

    targets: what their names stand for, as ComfyUI's key maps have it. changes: what they do, module by module.
    misfits: why they do not fit the model, of those whose names it has. unmatched: those whose names it has not.
    front: what the names have in front that is no wrapper known here, or "".
    """

    targets: dict[str, Target] = field(default_factory=dict)
    changes: dict[str, Placed] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    front: str = ""


class LayerFinder:
    """The layers of one model, by the names that files may have for them.

    tree: the module tree that the paths are in. index: of its layers.
    """

    def __init__(self, tree: nn.Module, index: LayerIndex) -> None:
        self._tree, self.index = tree, index

    @staticmethod
    def of_model(base_model: BaseModel) -> LayerFinder:
        """Return the finder of a diffusion model's layers."""
        key_map = comfy.lora.model_lora_keys_unet(base_model, {})
        return LayerFinder(base_model, LayerIndex(diffusers_layers(base_model) | key_map, model_paths))

    @staticmethod
    def of_encoders(encoders: nn.Module) -> LayerFinder:
        """Return the finder of the layers of text encoders, as ComfyUI's CLIP has them together."""
        return LayerFinder(encoders, LayerIndex(comfy.lora.model_lora_keys_clip(encoders, {}), encoder_paths))

    def place(self, layers: Mapping[str, Change]) -> Placement:
        """Find the layers of one slider.

        If the model has no path of theirs, they are read as parts of its paths, or without what all of them have in
        front. Raises ValueError, naming both, if a layer can be either of two, and fits both.
        """
        placement = self._placed(layers, self.index.readings)
        if placement.targets or placement.misfits or not layers:
            return placement
        others = (self._placed(layers, readings, front) for front, readings in self._other_readings(layers))
        return next((other for other in others if other.targets), placement)

    def _other_readings(self, layers: Mapping[str, Change]) -> Iterator[tuple[str, Readings]]:
        """Yield what all names have in front, and how to read what is behind: whole paths before ends of paths."""
        fronts = common_fronts(layers)
        yield from ((front, _behind(front, self.index.readings)) for front in fronts)
        yield from ((front, _behind(front, self.index.readings_of_ends)) for front in ("", *fronts))

    def _placed(self, layers: Mapping[str, Change], readings: Readings, front: str = "") -> Placement:
        found, unmatched = Placement(front=front), []
        for name, change in layers.items():
            if not (targets := readings(name)):
                unmatched.append(name)
                continue
            try:
                found.targets[name], found.changes[name] = self._fitting(name, change, targets)
            except _Misfit as misfit:
                found.misfits[name] = str(misfit)
        return Placement(found.targets, found.changes, found.misfits, tuple(unmatched), front)

    def _fitting(self, name: str, change: Change, targets: tuple[Target, ...]) -> tuple[Target, Placed]:
        """Return the one of these places that the change fits, and what it does there."""
        fitting: list[tuple[Target, Placed]] = []
        reasons = []
        for target in targets:
            try:
                fitting.append((target, tuple(changes_in(self._tree, change, name, target))))
            except ValueError as error:
                reasons.append(str(error))
        if not fitting:
            raise _Misfit(reasons[0])
        if len(fitting) > 1:
            places = " and ".join(_described(target) for target, _ in fitting)
            raise ValueError(
                f"Layer {name} can be either of {places}: its name ends as theirs do, and it fits both. Which one is "
                "meant is not to be known; name it in full in the file."
            )
        return fitting[0]


def _behind(front: str, readings: Readings) -> Readings:
    """Return what reads names without what they have in front."""
    return lambda name: readings(name.removeprefix(front))


class _Misfit(ValueError):
    """A layer of another shape than the weight that its name stands for."""


def _described(target: Target) -> str:
    """Name a place in the model: a weight, and the rows of it that are meant."""
    key, part = (*target, None)[:2] if isinstance(target, tuple) else (target, None)
    return key if part is None else f"{key}, {part[2]} from {part[1]} on"
