"""The pocket model, of ComfyUI's own classes: MODEL, CLIP, VAE and CLIP_VISION that every stock node takes.

A v-prediction UNet over 8 x 16 x 16 latents (`autoencoder`), prompted by a small CLIP text model (`text`)
through cross-attention and through its pooled output.
"""

from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from .autoencoder import CHANNELS, FACTOR, Autoencoder
from .text import WIDTH, PocketClipModel, PocketTokenizer
from .vision import build_vision

FOLDER = Path(__file__).parent / "weights"
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


class PocketConfig(comfy.supported_models_base.BASE):
    unet_config = {
        "image_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "model_channels": 80,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
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
    unet_extra_config = {"num_heads": -1, "num_head_channels": 40}
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


def build_clip(state_dict=None, **model_options) -> comfy.sd.CLIP:
    """The text encoder; `dtype` among the options overrides what the host would choose."""
    target = comfy.supported_models_base.ClipTarget(PocketTokenizer, PocketClipModel)
    return comfy.sd.CLIP(target, state_dict=state_dict or {}, parameters=1_000_000, model_options=model_options)


def build_vae(network: Autoencoder) -> comfy.sd.VAE:
    """ComfyUI's VAE around the pack's own network."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = network.eval().to(vae.vae_dtype)
    vae.downscale_ratio = vae.upscale_ratio = FACTOR
    vae.latent_channels = CHANNELS
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    return vae


def load_pocket(folder: Path = FOLDER):
    """(ModelPatcher, CLIP, VAE, ClipVisionModel) from the shipped weights, or from those of a training run.

    Raises FileNotFoundError if `folder` lacks one of the files.
    """
    model = build_unet()
    model.diffusion_model.load_state_dict(weights_of(folder, "unet"))
    patcher = comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    text = {f"clip_l.{name}": value for name, value in weights_of(folder, "text").items()}
    return patcher, build_clip(text), build_vae(load_autoencoder(folder)), build_vision(weights_of(folder, "vision"))


def load_autoencoder(folder: Path = FOLDER) -> Autoencoder:
    """The VAE's network alone."""
    network = Autoencoder()
    network.load_state_dict(weights_of(folder, "vae"))
    return network


def weights_of(folder: Path, part: str) -> dict[str, Tensor]:
    """Those of one part ("unet", "text", "vae", "vision"), in single precision."""
    path = folder / f"{part}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"No {part} of the pocket model at {path}: train one with pocket/train.py.")
    return {name: value.float() for name, value in comfy.utils.load_torch_file(str(path)).items()}
