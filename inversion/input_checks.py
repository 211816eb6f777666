"""Checks of the model and the latents, made before the model is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..comfy_host.acting_stack import acting_on
from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.identity import family
from .settings import InversionSettings

# Patches of guidance that sampling would follow and an inversion does not
GUIDANCE_PATCHES = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function")


def checked_latents(patcher: ModelPatcher, latents: Tensor) -> Tensor:
    """Returns the latents as (B, C, ...) float32, with the dimensions that the model takes.

    Raises ValueError for an empty latent, another number of channels, several latents in one, and NaN.
    """
    latent_format = patcher.get_model_object("latent_format")
    if latents.is_nested:
        raise ValueError("Inversion: latent holds several latents in one (video and sound, say); take one.")
    if latent_format.latent_dimensions == 3 and latents.ndim == 4:
        latents = latents.unsqueeze(2)  # (B, C, H, W) -> (B, C, 1, H, W), as ComfyUI does
    expected = latent_format.latent_dimensions + 2
    if latents.ndim != expected or latents.shape[1] != latent_format.latent_channels:
        raise ValueError(
            f"Inversion: {family(patcher)} takes latents of {latent_format.latent_channels} channels in {expected} "
            f"dimensions; got the shape {tuple(latents.shape)}. Encode the image with the model's own VAE."
        )
    if not torch.isfinite(latents).all():
        raise ValueError("Inversion: latent holds numbers that are not finite (NaN or infinite).")
    if latents.numel() and not latents.any():
        raise ValueError("Inversion: latent is empty. Wire in an image, from VAE Encode.")
    return latents.detach().clone().float()


def check_model(patcher: ModelPatcher, settings: InversionSettings) -> None:
    """Raises ValueError for models that the method cannot work on, or that carry sliders or patches of guidance."""
    if settings.method != "plain" and _is_guidance_distilled(patcher):
        raise ValueError(
            f"Inversion: {family(patcher)} has guidance distilled into it. It is sampled at a cfg of 1, where the "
            f"negative prompt has no part, so {settings.method!r} has nothing to act on. Choose the method 'plain' "
            "with a cfg of 1: it gives a noise latent that sampling leads back to the image, for sliders to act on."
        )
    if acting_on(patcher) is not None:
        raise ValueError(
            "Inversion: the model has sliders on it. An image is inverted on the bare model: wire in the model from "
            "before Apply Sliders, and apply them for the sampling."
        )
    if patched := [name for name in GUIDANCE_PATCHES if patcher.model_options.get(name)]:
        raise ValueError(
            f"Inversion: the model's guidance is patched ({', '.join(patched)}), by a node such as RescaleCFG; the "
            "inversion would not be of what samples. Wire in the model from before that node."
        )


def _is_guidance_distilled(patcher: ModelPatcher) -> bool:
    return bool(patcher.model.model_config.unet_config.get("guidance_embed"))
