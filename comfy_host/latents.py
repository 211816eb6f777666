"""Latents of several parts, such as a video and its sound, as one tensor; and checks that a model takes latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.sample
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .identity import family
from .model_classes import model_classes

Shapes = list[torch.Size] | None  # of the parts, the images first; None where there is one part


def packed(latents: Any) -> tuple[Tensor, Shapes]:
    """Return a tensor as it is; ComfyUI's nested tensor of several, (B, C, ...) each, as (B, 1, numbers)."""
    if not getattr(latents, "is_nested", False):
        return latents, None
    return comfy.utils.pack_latents(latents.unbind())


def check_has_all_parts(base_model: BaseModel, shapes: Shapes) -> None:
    """Raise ValueError for images alone on a model that does not run without the sound that belongs to them."""
    if shapes is None and isinstance(base_model, model_classes("MiniMaxH3")):
        raise ValueError(
            "MiniMax H3 makes videos together with their sound, and takes latents of both; got images alone. "
            "Train it from words, at an empty latent of a video with sound; image pairs are for other models."
        )


def image_part(latents: Tensor, shapes: Shapes) -> Tensor:
    """Return the part of latents that holds the images: (B, C, ...)."""
    return latents if shapes is None else comfy.utils.unpack_latents(latents, shapes)[0]


def to_model_scale(patcher: ModelPatcher) -> Callable[[Tensor], Tensor]:
    """Return a function from latents of the model's VAE, (N, C, ...), to the model's own scale.

    Some models take them in another shape than their VAE gives, such as two frames in one. The function raises
    ValueError for latents of another model's VAE: ComfyUI's scaling of a video would broadcast an image into one.
    """

    def scaled(latents: Tensor) -> Tensor:
        check_has_all_parts(patcher.model, None)
        own = torch.zeros(1, *_own_shape(patcher))
        _must_be_like(patcher, latents, patcher.model.process_latent_out(own))
        return patcher.model.process_latent_in(latents)

    return scaled


def check_latents_fit(patcher: ModelPatcher, latents: Tensor) -> None:
    """Raise ValueError for latents, (N, C, ...) in the model's own scale, that are of another model."""
    check_has_all_parts(patcher.model, None)
    _must_be_like(patcher, latents, torch.zeros(1, *_own_shape(patcher)))


def _own_shape(patcher: ModelPatcher) -> tuple[int, ...]:
    """Return the shape of the model's smallest latent: (C, 1, ...)."""
    latent_format = patcher.model.latent_format
    return latent_format.latent_channels, *(1,) * latent_format.latent_dimensions


def _must_be_like(patcher: ModelPatcher, latents: Tensor, own: Tensor) -> None:
    if latents.ndim != own.ndim or latents.shape[1] != own.shape[1]:
        raise ValueError(
            f"Training: the VAE belongs to another model. It gave latents of {latents.shape[1]} channels in "
            f"{latents.ndim} dimensions, {tuple(latents.shape)}; {family(patcher)} takes {own.shape[1]} channels in "
            f"{own.ndim} dimensions. Encode the images with the model's own VAE."
        )


def fit_latent(model: ModelPatcher, latent: Mapping[str, Any]) -> Tensor:
    """Give an empty LATENT the channels and the size that this model takes, as KSampler does; (B, C, ...).

    ComfyUI's nested tensors, of videos with sound, are left as they are.
    """
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
