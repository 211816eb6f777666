"""Patches the layers that prepare the prompts of a run, before sampling begins.

Sliders act on evaluations of the model, and these layers have run by then. Steady sliders without gates become
ComfyUI's own patches of the weights. Sliders that are gated, swept, or on cond or uncond alone are left out: there is
no sigma, no batch and no guidance when these layers run. So are parameters of blocks with layers in them, such as a
connector's registers, which ComfyUI does not patch.
"""

from __future__ import annotations

import logging

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..sliders.formats.layer_names import listed
from ..sliders.stack import StackedSlider
from .match import Match
from .model_classes import model_classes
from .weight_adapters import add_comfy_patches

log = logging.getLogger(__name__)

_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_BEFORE_THEM = ("caption_projection.", "audio_caption_projection.")


def prepares_prompts(base_model: BaseModel, path: str) -> bool:
    """Return True if a module of ComfyUI's model, by its path, prepares prompts."""
    within = path.removeprefix("diffusion_model.") + "."  # the part may be the layer itself
    return within.startswith(_prompt_parts(base_model))


def patch_prompt_layers(clone: ModelPatcher, placed: StackedSlider, match: Match) -> None:
    """Add ComfyUI's patches for the layers of one slider that prepare prompts, or warn of those left out."""
    if problem := left_out_of_prompts(clone, placed, match):
        log.warning("Slider '%s': %s", placed.slider.name, problem)
    strength = placed.strength[0]
    for path in _patched(clone, placed, match) if strength else ():
        for change in match.layers[path]:
            add_comfy_patches(clone, clone.model, path, change, strength)


def left_out_of_prompts(model: ModelPatcher, placed: StackedSlider, match: Match) -> str:
    """Say which layers of a slider prepare the prompts and are left out; "" if none are."""
    patched = _patched(model, placed, match)
    left_out = [path for path in _early(model, match) if path not in patched]
    if not left_out:
        return ""
    steady = placed.is_steady and not placed.is_gated
    where = (
        "as parameters of whole blocks" if steady else "where a slider is gated, swept, or on cond or uncond alone"
    )
    return (
        f"{len(left_out)} layers prepare the prompts, before sampling begins, and are left out {where}: "
        f"{listed(left_out)}"
    )


def _patched(model: ModelPatcher, placed: StackedSlider, match: Match) -> list[str]:
    """Return which of the layers that prepare prompts ComfyUI's own patches reach."""
    if placed.is_gated or not placed.is_steady:
        return []
    return [path for path in _early(model, match) if not any(model.model.get_submodule(path).children())]


def _early(model: ModelPatcher, match: Match) -> list[str]:
    return [path for path in match.layers if prepares_prompts(model.model, path)]


def _prompt_parts(base_model: BaseModel) -> tuple[str, ...]:
    """Return how the paths of these layers begin, by the models' `preprocess_text_embeds`."""
    if isinstance(base_model, model_classes("Anima")):
        return ("llm_adapter.",)
    if isinstance(base_model, model_classes("LTXAV")):
        before = getattr(base_model.diffusion_model, "caption_proj_before_connector", False)
        return (*_CONNECTORS, *_BEFORE_THEM) if before else _CONNECTORS
    if isinstance(base_model, model_classes("MiniMaxH3")):
        return ("condition_proj.", "token_refiner.")
    return ()
