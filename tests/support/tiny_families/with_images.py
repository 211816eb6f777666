"""Models that are given an image beside the prompt: as more channels, as tokens, or in the prompt's place."""

from types import SimpleNamespace

import comfy.supported_models as host
import torch
from concept_sliders.tests.support.tiny_families.family import POOLED, TEXT, Family, all_tokens, still
from concept_sliders.tests.support.tiny_families.later import QWEN
from concept_sliders.tests.support.tiny_families.transformers import FLUX
from concept_sliders.tests.support.tiny_families.unets import UNET, V_PREDICTION, WIDE_UNET
from concept_sliders.tests.support.tiny_families.videos import COGVIDEOX, COSMOS_2, HUNYUAN, LTXV, VIDEO
from concept_sliders.tests.support.tiny_families.wan import WAN

# One level of the UNet: inpainting is tested with two
ONE_LEVEL = {
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "in_channels": 8,
}
FRAME = {"concat_latent_image": still(1, 16, 8, 8)}
FIRST_FRAME_KEPT = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)

WITH_IMAGES: dict[str, Family] = {
    "SD 1 instruct pix2pix": Family(
        host.SD15_instructpix2pix, {**UNET, **ONE_LEVEL}, extra={"concat_latent_image": still(1, 4, 8, 8)}
    ),
    "SDXL instruct pix2pix": Family(
        host.SDXL_instructpix2pix,
        {**WIDE_UNET, **ONE_LEVEL, "num_classes": "sequential", "adm_in_channels": 2816},
        extra={
            "concat_latent_image": still(1, 4, 8, 8),
            "pooled_output": (1, 1280),
            "width": 64,
            "height": 64,
        },
    ),
    "SD 2.1 unCLIP": Family(
        host.SD21UnclipL,
        {**WIDE_UNET, **ONE_LEVEL, "in_channels": 4, "num_classes": "sequential", "adm_in_channels": 1536},
        state=V_PREDICTION,
        extra={
            "unclip_conditioning": [
                {
                    "clip_vision_output": SimpleNamespace(image_embeds=still(1, 768)),
                    "strength": 1.0,
                    "noise_augmentation": 0.1,
                }
            ]
        },
    ),
    "Stable Zero123": Family(
        host.Stable_Zero123,
        {**UNET, **ONE_LEVEL},
        context=(1, 20),
        extra={"concat_latent_image": still(1, 4, 8, 8)},
        state={"cc_projection.weight": 0.2 * still(TEXT, 20), "cc_projection.bias": torch.zeros(TEXT)},
    ),
    "SVD": Family(
        host.SVD_img2vid,
        {
            **WIDE_UNET,
            **ONE_LEVEL,
            "num_classes": "sequential",
            "adm_in_channels": 768,
            "use_temporal_attention": True,
            "use_temporal_resblock": True,
            "video_kernel_size": [3, 1, 1],
            "extra_ff_mix_layer": True,
            "merge_strategy": "learned_with_images",
        },
        context=(1, TEXT),
        extra={"concat_latent_image": still(1, 4, 8, 8)},
    ),
    "Flux Fill": Family(
        host.FluxInpaint,
        {**FLUX, "in_channels": 96},
        (16, 8, 8),
        extra={**POOLED, **FRAME, "guidance": 30.0, "concat_mask": torch.ones(1, 1, 64, 64)},
        guidance=1.0,
    ),
    "Flux Canny and Depth": Family(
        host.Flux, {**FLUX, "in_channels": 32}, (16, 8, 8), extra={**POOLED, **FRAME, "guidance": 30.0}, guidance=1.0
    ),
    "Flux Kontext": Family(
        host.Flux,
        FLUX,
        (16, 8, 8),
        extra={**POOLED, "guidance": 2.5, "reference_latents": [still(1, 16, 8, 8), still(1, 16, 4, 8)]},
        guidance=1.0,
    ),
    "LongCat-Image": Family(
        host.LongCatImage, {**FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, (16, 8, 8)
    ),
    "Qwen-Image Edit": Family(
        host.QwenImage,
        QWEN,
        (16, 1, 8, 8),
        extra={"reference_latents": [still(1, 16, 1, 8, 8), still(1, 16, 1, 4, 8)]},
    ),
    "HunyuanVideo image to video": Family(
        host.HunyuanVideoI2V,
        {**HUNYUAN, "in_channels": 33},
        VIDEO,
        extra={
            **POOLED,
            "guidance": 6.0,
            "concat_latent_image": still(1, 16, 2, 8, 8),
            "concat_mask": FIRST_FRAME_KEPT.expand(1, 1, 2, 8, 8),
        },
        guidance=1.0,
    ),
    "LTXV image to video": Family(
        host.LTXV,
        LTXV,
        (128, 2, 4, 4),
        extra={"attention_mask": all_tokens, "concat_mask": FIRST_FRAME_KEPT.expand(1, 1, 2, 4, 4)},
    ),
    "Wan 2.2 5B image to video": Family(
        host.WAN22_T2V,
        {**WAN, "in_dim": 48, "out_dim": 48},
        (48, 2, 4, 4),
        extra={"denoise_mask": FIRST_FRAME_KEPT.expand(1, 1, 2, 4, 4)},
    ),
    "Cosmos Predict 2 image to video": Family(
        host.CosmosI2VPredict2,
        {**COSMOS_2, "in_channels": 17},
        VIDEO,
        extra={"concat_mask": FIRST_FRAME_KEPT.expand(1, 1, 2, 8, 8)},
    ),
    "CogVideoX image to video": Family(
        host.CogVideoX_I2V,
        {**COGVIDEOX, "in_channels": 32},
        VIDEO,
    ),
    "Hunyuan3D 2": Family(
        host.Hunyuan3Dv2,
        {
            "image_model": "hunyuan3d2",
            "in_channels": 64,
            "context_in_dim": TEXT,
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "guidance_embed": True,
        },
        (64, 12),
        extra={"guidance": 5.0},
    ),
    "Hunyuan3D 2.1": Family(
        host.Hunyuan3Dv2_1,
        {
            "image_model": "hunyuan3d2_1",
            "in_channels": 64,
            "context_dim": TEXT,
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 3,
            "num_moe_layers": 1,
            "num_experts": 3,
            "guidance_cond_proj_dim": None,
        },
        (64, 12),
    ),
}
