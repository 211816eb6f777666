"""Tiny VAEs of ComfyUI's own classes with random weights, for images and for videos."""

import comfy.ldm.wan.vae
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL


def image_vae(channels: int = 4) -> comfy.sd.VAE:
    """Four times as large in both directions."""
    sizes = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": sizes, "embed_dim": channels}
    return comfy.sd.VAE(sd=random_state(AutoencoderKL(**params), 0.05), config={"params": params})


def video_vae() -> comfy.sd.VAE:
    """Wan's, with its eightfold images and fourfold frames."""
    made = comfy.ldm.wan.vae.WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    return comfy.sd.VAE(sd=random_state(made, 0.2))


def random_state(model: torch.nn.Module, spread: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) * spread for name, t in model.state_dict().items()}
