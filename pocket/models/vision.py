"""The pocket model's vision tower: ComfyUI's CLIP vision model, small, in one space with the text encoder."""

from __future__ import annotations

import comfy.clip_vision
from torch import Tensor

from ..world.drawing import SIZE
from .text import WIDTH

CONFIG = {
    "model_type": "clip_vision_model",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
    "patch_size": 16,
    "image_size": SIZE,
    "projection_dim": WIDTH,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def build_vision(state_dict: dict[str, Tensor] | None = None) -> comfy.clip_vision.ClipVisionModel:
    """What ComfyUI's CLIP vision nodes take; with unset weights if none are given."""
    vision = comfy.clip_vision.ClipVisionModel(CONFIG)
    if state_dict is not None:
        vision.model.load_state_dict(state_dict)
    return vision
