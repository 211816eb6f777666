"""Sliders on the host's text encoders: weight patches of the host's own, checked before they are handed over."""

from __future__ import annotations

import logging

import comfy.lora
from comfy.sd import CLIP

from .matching import placed, report
from .patches import hand_over
from .slider import Slider
from .stack import Stack


def apply_to_clip(clip: CLIP, stack: Stack) -> CLIP:
    """A clone of the text encoders with the stack's text-encoder layers patched in by the host.

    A text encoding has neither noise level nor rows: gates do not apply to it, and a slider that changes it
    must have one strength.
    Raises ValueError for a swept slider with text-encoder layers, for one whose layers match nothing, and for a
    layer that does not fit its weight.
    """
    clone = clip.clone()
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    for place in stack:
        layers = place.slider.text_layers
        if not layers:
            continue
        if len(set(place.strength)) > 1:
            raise ValueError(
                f"Slider '{place.slider.name}' changes the text encoder, which has no rows, "
                "so it cannot be swept there; apply it without CLIP, or at one strength."
            )
        if place.is_gated or place.branch != "both":
            logging.warning(
                "Slider '%s': its %d layers of the text encoder act from the first step on, and on both prompts: an "
                "encoding has neither gates nor branches.",
                place.slider.name,
                len(layers),
            )
        unmatched = tuple(name for name in layers if name not in key_map)
        report(place.slider, len(layers), unmatched, key_map, "text encoder")
        for name, layer in layers.items():
            if name in key_map:
                for path, change in placed(clone.cond_stage_model, layer, name, key_map[name]):
                    hand_over(clone, clone.cond_stage_model, path, change, place.strength[0])
    return clone


def text_layers_in(clip: CLIP, slider: Slider) -> tuple[str, ...]:
    """The names of the slider's text-encoder layers that these text encoders have."""
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return tuple(name for name in slider.text_layers if name in key_map)
