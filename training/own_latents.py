"""Whether latents are of the kind that a model takes, before it is asked about them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .in_place import family
from .packed import must_be_whole


def to_own_scale(patcher: ModelPatcher) -> Callable[[Tensor], Tensor]:
    """From latents of the model's VAE, (N, C, ...), to the model's own scale.

    Some models take them in another shape than their VAE gives, with two frames in one, say. What they are made of
    is what they are turned back into. The function raises ValueError for latents of another model's VAE: the host's
    scaling of a film would broadcast a picture into one.
    """

    def scaled(latents: Tensor) -> Tensor:
        must_be_whole(patcher.model, None)
        own = torch.zeros(1, *_own_shape(patcher))
        _must_be_like(patcher, latents, patcher.model.process_latent_out(own))
        return patcher.model.process_latent_in(latents)

    return scaled


def must_take(patcher: ModelPatcher, latents: Tensor) -> None:
    """Raises ValueError for latents, (N, C, ...) in the model's own scale, that are of another model."""
    must_be_whole(patcher.model, None)
    _must_be_like(patcher, latents, torch.zeros(1, *_own_shape(patcher)))


def _own_shape(patcher: ModelPatcher) -> tuple[int, ...]:
    """(C, 1, ...): the smallest latent of the model."""
    latent_format = patcher.model.latent_format
    return latent_format.latent_channels, *(1,) * latent_format.latent_dimensions


def _must_be_like(patcher: ModelPatcher, latents: Tensor, own: Tensor) -> None:
    if latents.ndim != own.ndim or latents.shape[1] != own.shape[1]:
        raise ValueError(
            f"Training: the VAE belongs to another model. It gave latents of {latents.shape[1]} channels in "
            f"{latents.ndim} dimensions, {tuple(latents.shape)}; {family(patcher)} takes {own.shape[1]} channels in "
            f"{own.ndim} dimensions. Encode the pictures with the model's own VAE."
        )
