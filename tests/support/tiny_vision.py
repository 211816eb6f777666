"""A tiny CLIP vision of ComfyUI's own class with random weights; and one that sees nothing."""

import json
from copy import deepcopy

import comfy.clip_vision
import torch

TINY = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 64,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "projection_dim": 16,
    "torch_dtype": "float32",
}


@torch.inference_mode()
def tiny_vision(folder, seed: int = 0) -> comfy.clip_vision.ClipVisionModel:
    """folder: to write its configuration in, which ComfyUI reads from a file."""
    config = folder / "vision.json"
    config.write_text(json.dumps(TINY))
    vision, generator = comfy.clip_vision.ClipVisionModel(str(config)), torch.Generator().manual_seed(seed)
    for parameter in vision.model.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vision


@torch.inference_mode()
def blinded(vision: comfy.clip_vision.ClipVisionModel) -> comfy.clip_vision.ClipVisionModel:
    """Return a copy whose patches are all read as the same, so that every image has the same embedding."""
    blind = deepcopy(vision)
    blind.model.vision_model.embeddings.patch_embedding.weight.zero_()
    return blind


@torch.inference_mode()
def flattened(vision: comfy.clip_vision.ClipVisionModel, dimensions: int) -> comfy.clip_vision.ClipVisionModel:
    """Return a copy whose embeddings have so many numbers that are not 0, the last."""
    flat = deepcopy(vision)
    flat.model.visual_projection.weight[:-dimensions] = 0
    return flat
