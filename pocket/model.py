"""The pocket model, of the host's own classes: MODEL, CLIP and VAE that every stock node takes.

A rectified-flow UNet over 24 x 16 x 16 latents (`codec`), prompted by a small CLIP text model (`text`)
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

from .codec import BLOCK, CHANNELS, BlockCodec
from .models.text import WIDTH, PocketClipModel, PocketTokenizer

WEIGHTS = Path(__file__).parent / "weights" / "pocket.safetensors"
SHIFT = 2.0  # of the noise schedule, in training and in sampling


class PocketLatents(comfy.latent_formats.LatentFormat):
    latent_channels = CHANNELS
    spacial_downscale_ratio = BLOCK

    def __init__(self):
        # Lowest frequencies alone, for the host's previews: luma, then the two chroma axes.
        factors = [[0.0, 0.0, 0.0] for _ in range(CHANNELS)]
        factors[0] = [0.1355] * 3
        factors[16], factors[20] = [0.1101, 0.0, -0.1101], [0.0399, -0.0798, 0.0399]
        self.latent_rgb_factors = factors


class PocketConfig(comfy.supported_models_base.BASE):
    unet_config = {
        "image_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
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
    sampling_settings = {"shift": SHIFT, "multiplier": 1000}
    latent_format = PocketLatents
    memory_usage_factor = 0.5
    supported_inference_dtypes = [torch.float32, torch.float16, torch.bfloat16]

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        return PocketModel(self, model_type=self.model_type(state_dict), device=device)


class PocketModel(comfy.model_base.BaseModel):
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


def build_vae() -> comfy.sd.VAE:
    """The host's VAE around the block codec."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = BlockCodec().eval().to(vae.vae_dtype)
    vae.downscale_ratio = vae.upscale_ratio = BLOCK
    vae.latent_channels = CHANNELS
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    return vae


def load_pocket(path: Path = WEIGHTS):
    """(ModelPatcher, CLIP, VAE) from the shipped weights, or from those of a training run.

    Raises FileNotFoundError if `path` holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No pocket model at {path}: train one with pocket/train.py.")
    weights = {key: value.float() for key, value in comfy.utils.load_torch_file(str(path)).items()}
    split: dict[str, dict[str, torch.Tensor]] = {"unet.": {}, "clip_l.": {}}
    for key, value in weights.items():
        prefix = next(p for p in split if key.startswith(p))
        split[prefix][key.removeprefix("unet.")] = value
    model = build_unet()
    model.diffusion_model.load_state_dict(split["unet."])
    patcher = comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return patcher, build_clip(split["clip_l."]), build_vae()
