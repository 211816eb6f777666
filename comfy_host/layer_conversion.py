"""A slider's layers by the names of another tool's convention, with the model where names alone do not tell them."""

from __future__ import annotations

import re

import comfy.lora
import comfy.model_base
from comfy.model_patcher import ModelPatcher

from ..sliders.changes import Change
from ..sliders.equation.layer_kinds import weight_shape
from ..sliders.formats.conventions import (
    AS_IT_IS,
    DIFFUSERS,
    KOHYA,
    NATIVE,
    name_in,
    names_by_key,
)
from ..sliders.formats.conversion import convert_layers
from ..sliders.formats.layer_names import listed
from ..sliders.formats.model_family import candidates, family_of
from ..sliders.slider import Slider
from .layer_finder import LayerFinder

_SEVERAL_ENCODERS = (comfy.model_base.SDXL, comfy.model_base.SD3, comfy.model_base.Flux)


def converted_layers(slider: Slider, convention: str, model: ModelPatcher | None = None) -> dict[str, Change]:
    """Rename a slider's layers to their names in a convention; layers of several parts are joined or split for it.

    convention: one of `conventions.CONVENTIONS`.
    model: the one that the slider is for; needed where names alone do not tell the new ones.
    Raises ValueError if the convention has no name for one of them, or the model is needed and is not there.
    """
    if convention == AS_IT_IS:
        return dict(slider.layers)
    several = _has_several_encoders(slider, model)
    by_name = slider.layers if model is None else slider.text_layers
    layers: dict[str, Change] = {}
    names = {name: new for name in by_name if (new := name_in(name, convention, several)) is not None}
    if unnamed := [name for name in by_name if name not in names]:
        hint = "" if model is not None else " Connect the model that the slider is for: it may know them."
        raise ValueError(
            f"Names alone do not tell those in the convention '{convention}' of {listed(unnamed)}.{hint}"
        )
    for name, change in by_name.items():
        new = names[name]
        if new in layers:
            raise ValueError(f"Two layers of slider '{slider.name}' are {new} in the convention '{convention}'.")
        layers[new] = change
    if model is not None and slider.model_layers:
        layers |= _by_model(slider.model_layers, convention, model)
    return layers


def _has_several_encoders(slider: Slider, model: ModelPatcher | None) -> bool:
    """Returns True if the slider's family has more than one text encoder, which kohya's scripts number."""
    if model is not None:
        return isinstance(model.model, _SEVERAL_ENCODERS)
    if any(re.match(r"lora_te[23]|text_encoder_[23]", name) for name in slider.layers):
        return True
    return not {"SDXL", "SD3", "Flux"}.isdisjoint(candidates(family_of(slider.layers)))


def _by_model(layers: dict[str, Change], convention: str, model: ModelPatcher) -> dict[str, Change]:
    """Rename layers of the diffusion model by the weights that their names stand for in it."""
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    placement = LayerFinder.of_model(model.model).place(layers)
    if placement.unmatched:
        raise ValueError(f"Not in the model, so their other names are not known: {listed(placement.unmatched)}.")
    if placement.misfits:
        raise ValueError("; ".join(placement.misfits.values()))

    def shape_of(key: str) -> tuple[int, ...]:
        return weight_shape(model.model.get_submodule(key.rpartition(".")[0]), key)

    def by(other: str) -> tuple[dict[str, Change], tuple[str, ...]]:
        flux_2 = isinstance(model.model, comfy.model_base.Flux2)
        return convert_layers(layers, placement.targets, names_by_key(key_map, other, flux_2), shape_of)

    named, unnamed = by(convention)
    if unnamed:
        whole = [f"'{other}'" for other in (KOHYA, DIFFUSERS, NATIVE) if other != convention and not by(other)[1]]
        hint = f" All of them have names in {' and in '.join(whole)}." if whole else ""
        raise ValueError(
            f"{len(unnamed)} of the slider's {len(layers)} layers have no name in the convention '{convention}' that "
            f"ComfyUI reads: {listed(unnamed)}.{hint}"
        )
    return named
