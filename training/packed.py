"""Latents of several parts, such as a film and its sound, as one tensor: so the host samples them, too."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.utils
import torch
from comfy.model_base import BaseModel
from torch import Tensor

Shapes = list[torch.Size] | None  # of the parts, the pictures first; None where there is one part


def packed(latents: Any) -> tuple[Tensor, Shapes]:
    """A tensor as it is; the host's nested tensor of several, (B, C, ...) each, as (B, 1, numbers)."""
    if not getattr(latents, "is_nested", False):
        return latents, None
    return comfy.utils.pack_latents(latents.unbind())


def must_be_whole(base_model: BaseModel, shapes: Shapes) -> None:
    """Raises ValueError for pictures alone on a model that does not run without the sound that belongs to them."""
    if shapes is None and isinstance(base_model, comfy.model_base.MiniMaxH3):
        raise ValueError(
            "MiniMax H3 makes films together with their sound, and takes latents of both; got pictures alone. "
            "Train it from words, at an empty latent of a film with sound; image pairs are for other models."
        )


def pictures_of(latents: Tensor, shapes: Shapes) -> Tensor:
    """(B, C, ...): what can be looked at of latents."""
    return latents if shapes is None else comfy.utils.unpack_latents(latents, shapes)[0]
