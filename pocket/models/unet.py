"""The pocket model's UNet, of ComfyUI's own classes: v-prediction over 8 x 16 x 16 latents.

It is prompted by a small CLIP text model through cross-attention and through its pooled output.
"""

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import torch
from torch import Tensor

from .autoencoder import CHANNELS, FACTOR
from .text import WIDTH

TIMESTEPS = 1000
# The noise schedule: sigma = MIDDLE tan(angle), the angle rising evenly with the timestep. A latent of 16 x 16 shows
# its layout through more noise than one of 64 x 64 does, so the middle lies lower than a cosine schedule's (1).
MIDDLE, SIGMA_MIN, SIGMA_MAX = 0.75, 0.012, 20.0


def noise_levels() -> Tensor:
    """(1000,) sigmas, rising."""
    first, last = (torch.atan(torch.tensor(sigma / MIDDLE, dtype=torch.float64)) for sigma in (SIGMA_MIN, SIGMA_MAX))
    angles = first + (last - first) * torch.linspace(0, 1, TIMESTEPS, dtype=torch.float64)
    return (MIDDLE * torch.tan(angles)).float()


class PocketLatents(comfy.latent_formats.LatentFormat):
    latent_channels = CHANNELS
    spacial_downscale_ratio = FACTOR
    # For ComfyUI's previews: least squares from latents of drawings to their mean colours in [-1, 1]
    latent_rgb_factors = (
        (0.013, -0.012, -0.001),
        (0.018, 0.013, -0.132),
        (-0.125, -0.035, -0.028),
        (-0.037, -0.096, -0.129),
        (-0.049, 0.079, 0.134),
        (0.066, 0.019, 0.015),
        (0.058, 0.080, -0.009),
        (-0.190, -0.189, -0.151),
    )
    latent_rgb_factors_bias = (0.171, 0.101, 0.122)


class PocketConfig(comfy.supported_models_base.BASE):
    unet_config = {
        "image_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [1, 1, 1, 1],  # the finest level too: eyes are two latents wide
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "context_dim": WIDTH,
        "num_classes": "sequential",
        "adm_in_channels": WIDTH,
        "use_temporal_attention": False,
        "legacy": False,
        "dtype": torch.float32,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    latent_format = PocketLatents
    memory_usage_factor = 0.5
    supported_inference_dtypes = [torch.float32, torch.float16, torch.bfloat16]

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def get_model(self, state_dict, prefix="", device=None):
        return PocketModel(self, model_type=self.model_type(state_dict), device=device)


class PocketModel(comfy.model_base.BaseModel):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.model_sampling.set_sigmas(noise_levels())

    def encode_adm(self, **kwargs):
        """(B, 128): the pooled prompt, which every residual block receives."""
        return kwargs["pooled_output"]


def build_unet(device=None) -> PocketModel:
    """The diffusion model with unset weights."""
    return PocketConfig(PocketConfig.unet_config).get_model({}, device=device)
