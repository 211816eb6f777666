"""Images of latents: decoded by a VAE, or rough ones by ComfyUI's linear map from latents to colours."""

from __future__ import annotations

from typing import Any

import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from einops import rearrange
from PIL import Image
from torch import Tensor

__all__ = ["VAE", "decoded_images", "images_of", "rough_images"]


def images_of(vae: VAE, latents: Any) -> Tensor:
    """Decode latents in the scale of ComfyUI's LATENT to images.

    latents: (N, C, h, w), or (N, C, T, h, w) of videos, of which the frame in the middle is taken; of nested tensors,
    of a video with its sound, the first part.
    Returns (N, H, W, 3) in 0..1.
    """
    images = vae.decode(latents.unbind()[0] if latents.is_nested else latents)
    return images[:, images.shape[1] // 2] if images.ndim == 5 else images  # (N, T, H, W, 3) -> (N, H, W, 3)


def decoded_images(model: ModelPatcher, latents: Tensor, vae: VAE) -> Tensor:
    """Decode latents in the model's own scale to images.

    latents: (N, C, h, w), or (N, C, T, h, w) of videos, of which the frame in the middle is taken.
    Returns (N, H, W, 3) in 0..1.
    """
    return images_of(vae, model.model.process_latent_out(latents.float()))


def rough_images(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Map latents to colours as ComfyUI's own previews do; grey where the model's latent format has no such map.

    latents: (N, C, h, w), or (N, C, T, h, w) of videos, of which the frame in the middle is taken.
    Returns (N, h, w, 3) in 0..1.
    """
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return torch.full((len(latents), 8, 8, 3), 0.5)
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )
    if latents.ndim == 5:
        latents = latents[:, :, latents.shape[2] // 2, None]
    previews = [previewer.decode_latent_to_preview(latent[None]) for latent in latents.float().cpu()]
    return torch.stack([_tensor(preview) for preview in previews])


def _tensor(image: Image.Image) -> Tensor:
    """An image of PIL as (H, W, 3) in 0..1."""
    values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return rearrange(values, "(h w c) -> h w c", h=image.height, w=image.width).float() / 255
