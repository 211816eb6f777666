"""Prompts whose encoding is shifted, by another strength in each batch entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Conditioning = list  # ComfyUI's CONDITIONING: [[Tensor (B, tokens, width), {...}], ...]


def shift_encoding(conditioning: Conditioning, shift: Tensor, strengths: Sequence[float]) -> Conditioning:
    """Add strength * shift to a prompt's encoding, one strength a batch entry, as ComfyUI's samplers take them.

    shift: (tokens, width). A longer encoding, as of a prompt that takes several chunks, is shifted where it begins.
    A single strength shifts an encoding with several entries in all of them.
    Returns a new CONDITIONING whose encodings have an entry a strength, (B, tokens, width); pooled ones stay.
    Raises ValueError for an encoding that is shorter or of another width, or has another number of entries.
    """
    return [[_shifted(encoding, shift, strengths), dict(options)] for encoding, options in conditioning]


def encoding_of(conditioning: Conditioning) -> tuple[Tensor, dict[str, Any]]:
    """Return a prompt's encoding, (1, tokens, width), and its options. Raises ValueError for several combined."""
    if len(conditioning) != 1 or conditioning[0][0].ndim != 3 or len(conditioning[0][0]) != 1:
        raise ValueError("A prompt must be a single conditioning of one batch entry here, not several combined.")
    encoding, options = conditioning[0]
    return encoding, options


def _shifted(encoding: Tensor, shift: Tensor, strengths: Sequence[float]) -> Tensor:
    entries, tokens, width = encoding.shape
    if shift.shape[1] != width or shift.shape[0] > tokens or (entries > 1 and len(strengths) not in (1, entries)):
        raise ValueError(
            f"The direction is of an encoding of {shift.shape[0]} tokens of width {shift.shape[1]}, to be shifted by "
            f"{len(strengths)} strengths; got {entries} entries of {tokens} tokens of width {width}. Take the text "
            "encoder that it was found with, and one prompt."
        )
    padded = F.pad(shift.to(encoding), (0, 0, 0, tokens - len(shift)))
    return encoding + torch.tensor(list(strengths)).to(encoding)[:, None, None] * padded
