"""Tiny models with weights of any type."""

import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.tests.support.tiny import FAMILIES, tiny_model


def typed_model(family: str, weights: torch.dtype, compute: torch.dtype | None) -> ModelPatcher:
    """A tiny model with its weights stored in one dtype, and computed in another where that differs."""
    config_class, unet_config, _, _ = FAMILIES[family]
    config = config_class(dict(unet_config))
    config.set_inference_dtype(weights, compute)
    with torch.inference_mode():
        typed = config.get_model({}, device=torch.device("cpu"))
        for own, source in zip(typed.parameters(), tiny_model(family).model.parameters(), strict=True):
            own.data = source.data.to(weights)
    return ModelPatcher(typed, torch.device("cpu"), torch.device("cpu"))
