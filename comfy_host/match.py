"""Matches a slider's layers with a model's modules, and says which of them the model has."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import comfy.lora
import comfy.utils
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..sliders.changes import LowRank
from ..sliders.equation.layer_kinds import can_act_on
from ..sliders.formats.layer_names import listed
from ..sliders.formats.model_family import UNKNOWN, candidates, family_of
from ..sliders.slider import Slider
from .layer_finder import LayerFinder, Placement
from .model_state import ModelState, state_of
from .weight_adapters import ComfyPatch

log = logging.getLogger(__name__)

_WEIGHT = ".weight"
_SHOWN = 3  # names of a file, and of a model, where they have nothing in common


@dataclass(frozen=True)
class Match:
    """Which of a slider's layers a model has.

    layers: the changes by the path of the module that they act on, shaped for it.
    unmatched: the names of the slider's layers that the model has not. misfits: why layers do not fit the weights
        that they are named after, by their names; they are left out. total: how many layers the slider has for the
        model. front: what its names have in front of the model's, if that is no wrapper known here.
    """

    layers: Mapping[str, tuple[LowRank | ComfyPatch, ...]]
    unmatched: tuple[str, ...]
    total: int
    misfits: Mapping[str, str] = field(default_factory=dict)
    front: str = ""

    @property
    def matched(self) -> int:
        return self.total - len(self.unmatched) - len(self.misfits)

    @property
    def relative(self) -> bool:
        """True if any of the changes depends on the weight that it changes."""
        return any(isinstance(c, ComfyPatch) and c.relative for changes in self.layers.values() for c in changes)


def match_slider(model: ModelPatcher, slider: Slider) -> Match:
    """Find a slider's layers in a model, see `layers_of`."""
    return layers_of(slider, model.model, state_of(model.model))


def layers_of(slider: Slider, base_model: BaseModel, state: ModelState) -> Match:
    """Find a slider's layers in a model, see `layer_finder`. state: what sliders keep for the model.

    A layer that changes only part of a fused weight, such as the queries of a joint query-key-value layer, is
    widened to the whole of it with zeros. Layers that do not fit are left out.
    Raises ValueError if no layer meant for the diffusion model is found, if most of those found do not fit, or if one
    can be either of two; logs a warning, with the numbers, if only some are found and fit.
    """
    finder = state.finder = state.finder or LayerFinder.of_model(base_model)
    return state.match(slider.content_hash, lambda: _found(slider, finder))


def _found(slider: Slider, finder: LayerFinder) -> Match:
    layers = slider.model_layers
    placement = finder.place(layers)
    check_placed(slider, placement, finder, "diffusion model")
    return matched_by(placement, len(layers))


def matched_by(placement: Placement, total: int) -> Match:
    """Return where a slider's layers are, by the paths of modules. total: how many layers it has for the model."""
    found: dict[str, tuple[LowRank | ComfyPatch, ...]] = {}
    for changes in placement.changes.values():
        for path, change in changes:
            found[path] = (*found.get(path, ()), change)
    return Match(found, placement.unmatched, total, placement.misfits, placement.front)


def layer_names(model: ModelPatcher) -> dict[str, str]:
    """Return the layer name in a file for each module that sliders can act on, by its path in ComfyUI's model.

    Paths are those of the state dict, such as "diffusion_model.input_blocks.1.0.in_layers.2". UNets get the
    kohya names, in the diffusers form where there is one, which most tools read; other models get the path. SDXL's
    `label_emb`, for which ComfyUI has two such forms in the order of a set, keeps the plain name: diffusers reads
    neither form, and that one.
    The stock LoRA loader reads each name back to the same module.
    """
    unet_names: dict[str, list[str]] = {}  # the plain name first, then the diffusers forms
    if comfy.utils.unet_to_diffusers(model.model.model_config.unet_config):
        for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
            if name.startswith("lora_unet_"):
                unet_names.setdefault(key, []).append(name)
    names = {}
    for path, module in model.model.named_modules():
        if path.startswith("diffusion_model.") and can_act_on(module):
            plain, *diffusers = unet_names.get(path + _WEIGHT, [path])
            names[path] = diffusers[0] if len(diffusers) == 1 else plain
    return names


def check_placed(slider: Slider, placement: Placement, finder: LayerFinder, where: str) -> None:
    """Raise ValueError if none of a slider's layers was found, or most do not fit; say how many where only some do.

    where: the model's name in messages.
    """
    found, misfits = len(placement.targets), placement.misfits
    total = found + len(misfits) + len(placement.unmatched)
    source = f" ({slider.info.source})" if slider.info.source else ""
    if placement.unmatched and not (found or misfits):
        raise ValueError(
            f"None of the {total} layers of slider '{slider.name}'{source} is in this {where}. "
            + _names_of_both(slider, placement.unmatched, finder)
        )
    if len(misfits) > found:
        raise ValueError(
            f"{len(misfits)} of the {found + len(misfits)} layers of slider '{slider.name}'{source} that are in this "
            f"{where} by name do not fit it. {next(iter(misfits.values()))}"
        )
    if found < total:
        missing = [f"not {listed(slider.names_in_file(placement.unmatched))}"] if placement.unmatched else []
        log.warning(
            "Slider '%s': %d of its %d layers are in this %s; %s",
            slider.name,
            found,
            total,
            where,
            "; ".join([*missing, *misfits.values()]),
        )


def _names_of_both(slider: Slider, unmatched: tuple[str, ...], finder: LayerFinder) -> str:
    """Say what a slider's layers are called and what the model's, and if names tell that their families differ."""
    models = [name for name in finder.index.key_map if name.startswith("diffusion_model.")]
    alike = _begin_like(unmatched[0], finder.index.key_map) or models or list(finder.index.key_map)
    theirs, own = (_some(slider.names_in_file(unmatched))), _some(alike)
    said = f"The slider has names such as {theirs}; the model such as {own}. "
    families = family_of(slider.layers), family_of(models)
    if UNKNOWN in families or not set(candidates(families[0])).isdisjoint(candidates(families[1])):
        return said + "Its names are not known here; that alone does not say that it was made for another model."
    return (
        said + f"Its names are those of {families[0]}, the model's of {families[1]}: it was made for another family."
    )


def _begin_like(name: str, names: Mapping[str, object]) -> list[str]:
    """Return the names that begin as this one does, up to the first dot or, without dots, the second underscore."""
    start = f"{name.partition('.')[0]}." if "." in name else "_".join([*name.split("_")[:2], ""])
    return [other for other in names if other.startswith(start)]


def _some(names: Sequence[str]) -> str:
    """Name three of these, from the first to the last of them."""
    chosen = dict.fromkeys(names[index * (len(names) - 1) // (_SHOWN - 1)] for index in range(_SHOWN))
    *first, last = [f"{name:.200}" for name in chosen]
    return f"{', '.join(first)} and {last}" if first else last
