"""Classifier-free guidance, in the linear form of the model's predictions."""

from __future__ import annotations

from torch import Tensor


def classifier_free(d_prompt: Tensor, d_empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) in the form d_empty + g (d_prompt - d_empty)."""
    return d_empty + guidance * (d_prompt - d_empty)
