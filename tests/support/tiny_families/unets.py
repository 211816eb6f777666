"""The UNets: Stable Diffusion 1, 2 and XL, and Stable Cascade."""

import comfy.supported_models as host
import torch
from concept_sliders.tests.support.tiny_families.family import POOLED, TEXT, Family

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": TEXT,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "dtype": torch.float32,
}
# Heads of 64 channels
WIDE_UNET = {**UNET, "model_channels": 64, "use_linear_in_transformer": True}
V_PREDICTION = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([0.0, 1.0])}

UNETS: dict[str, Family] = {
    "SD 1": Family(host.SD15, UNET),
    "SD 1 inpainting": Family(host.SD15, {**UNET, "in_channels": 9}),
    "SD 2": Family(host.SD20, WIDE_UNET, state=V_PREDICTION),
    "SDXL": Family(
        host.SDXL,
        {**WIDE_UNET, "num_classes": "sequential", "adm_in_channels": 2816},
        extra={"pooled_output": (1, 1280), "width": 64, "height": 64},
    ),
    "SDXL refiner": Family(
        host.SDXLRefiner,
        {**WIDE_UNET, "num_classes": "sequential", "adm_in_channels": 2560},
        extra={"pooled_output": (1, 1280)},
    ),
    "Stable Cascade C": Family(
        host.Stable_Cascade_C,
        {
            "stable_cascade_stage": "c",
            "c_cond": 64,
            "c_hidden": [64, 64],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_clip_text": TEXT,
            "c_clip_text_pooled": 8,
        },
        (16, 8, 8),
        extra=POOLED,
    ),
    "Stable Cascade B": Family(
        host.Stable_Cascade_B,
        {
            "stable_cascade_stage": "b",
            "c_cond": 32,
            "c_hidden": [32, 32, 64, 64],
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "c_clip": 8,
        },
        (4, 16, 16),
        extra={**POOLED, "stable_cascade_prior": (1, 16, 4, 4)},
    ),
}
