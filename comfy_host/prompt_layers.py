"""Patches the layers that prepare the prompts of a run, before sampling begins.

Sliders act on evaluations of the model, and these layers have run by then. Steady sliders without gates become
ComfyUI's own patches of the weights. Sliders that are gated, swept, or on cond or uncond alone are left out: there is
no sigma, no batch and no guidance when these layers run.
"""

from __future__ import annotations

import logging

import comfy.model_base
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..sliders.formats.layer_names import listed
from ..sliders.stack import StackedSlider
from .match import Match
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
    early = [path for path in match.layers if prepares_prompts(clone.model, path)]
    if not early:
        return
    if placed.is_steady and not placed.is_gated:
        strength = placed.strength[0]
        for path in early if strength else ():
            for change in match.layers[path]:
                add_comfy_patches(clone, clone.model, path, change, strength)
        return
    log.warning(
        "Slider '%s': %d layers prepare the prompts, before sampling begins, and are left out where a slider is "
        "gated, swept, or on cond or uncond alone: %s",
        placed.slider.name,
        len(early),
        listed(early),
    )


def _prompt_parts(base_model: BaseModel) -> tuple[str, ...]:
    """Return how the paths of these layers begin, by the models' `preprocess_text_embeds`."""
    if isinstance(base_model, comfy.model_base.Anima):
        return ("llm_adapter.",)
    if isinstance(base_model, comfy.model_base.LTXAV):
        before = getattr(base_model.diffusion_model, "caption_proj_before_connector", False)
        return (*_CONNECTORS, *_BEFORE_THEM) if before else _CONNECTORS
    if isinstance(base_model, comfy.model_base.MiniMaxH3):
        return ("condition_proj.", "token_refiner.")
    return ()
