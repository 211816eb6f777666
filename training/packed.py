"""Latents of several parts, such as a film and its sound, as one tensor: so the host samples them, too."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from torch import Tensor

Shapes = list[torch.Size] | None  # of the parts, the pictures first; None where there is one part


def packed(latents: Any) -> tuple[Tensor, Shapes]:
    """A tensor as it is; the host's nested tensor of several, (B, C, ...) each, as (B, 1, numbers)."""
    if not getattr(latents, "is_nested", False):
        return latents, None
    return comfy.utils.pack_latents(latents.unbind())


def pictures_of(latents: Tensor, shapes: Shapes) -> Tensor:
    """(B, C, ...): what can be looked at of latents."""
    return latents if shapes is None else comfy.utils.unpack_latents(latents, shapes)[0]
