"""The UNets of SD 1.5 and SDXL at their whole size, without memory, and their layers in diffusers' names."""

from typing import Any

import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.bench._unets import SD15, SDXL, UNET

_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SD 1.5": (comfy.supported_models.SD15, SD15),
    "SDXL": (comfy.supported_models.SDXL, SDXL),
}
# Transformer blocks in each attention of diffusers' down blocks; those of the up blocks are the other way round, and
# the middle's has as many as the deepest
WHOLE_UNETS = {"SD 1.5": (1, 1, 1, 0), "SDXL": (0, 2, 10)}


def whole_unet(size: str) -> ModelPatcher:
    """On the device "meta": shapes and names, and no weights."""
    config_class, config = _CONFIGS[size]
    model = config_class({**UNET, "dtype": torch.float32, **config}).get_model({}, device=torch.device("meta"))
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def c3lier_layers(size: str) -> set[str]:
    """Linear layers and convolutions of diffusers' Attention, ResnetBlock2D, Downsample2D and Upsample2D."""
    depths = WHOLE_UNETS[size]
    last = len(depths) - 1
    layers = {
        *(f"down_blocks_{i}_downsamplers_0_conv" for i in range(last)),
        *(f"up_blocks_{i}_upsamplers_0_conv" for i in range(last)),
    }
    for block, depth in enumerate(depths):
        for i in range(2):  # where channels change there is a shortcut
            shortcut = i == 0 and 0 < block < 3
            layers |= _resnet(f"down_blocks_{block}_resnets_{i}", shortcut)
            layers |= _attention(f"down_blocks_{block}_attentions_{i}", depth)
        for i in range(3):
            layers |= _resnet(f"up_blocks_{last - block}_resnets_{i}", True)
            layers |= _attention(f"up_blocks_{last - block}_attentions_{i}", depth)
    layers |= _attention("mid_block_attentions_0", max(depths))
    layers |= _resnet("mid_block_resnets_0", False) | _resnet("mid_block_resnets_1", False)
    return {f"lora_unet_{layer}" for layer in layers}


def _resnet(name: str, shortcut: bool) -> set[str]:
    return {f"{name}_{part}" for part in ("conv1", "time_emb_proj", "conv2", *["conv_shortcut"] * shortcut)}


def _attention(name: str, depth: int) -> set[str]:
    parts = ("to_q", "to_k", "to_v", "to_out_0")
    return {f"{name}_transformer_blocks_{i}_attn{n}_{part}" for i in range(depth) for n in (1, 2) for part in parts}
