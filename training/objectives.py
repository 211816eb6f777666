"""The losses, one function each, on predictions in the model's linear form d = (x - denoised) / sigma."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def textual_target(d_target: Tensor, d_more: Tensor, d_less: Tensor, eta: Tensor | float) -> Tensor:
    """What the slider-on model should predict at c_t (Concept Sliders, arXiv 2311.12092, eq. 8).

        d_target + eta * mean_p [ d(c+ & p) - d(c- & p) ]

    d_target: (P, B, C, ...), the frozen predictions at the target prompt with each phrase, or (1, B, C, ...) at the
        target prompt alone, as published. Their mean holds what the phrases name at even odds, whatever x shows
        already: a face grown old no longer brings the glasses that the model expects on it.
    d_more, d_less: (P, B, C, ...), the frozen predictions at both ends, one for each phrase p.
    eta: a number, or (B, 1, ...) for one per row; negative for the opposite edit.
    The paper sums over p; the mean keeps eta's meaning whatever the number of phrases.
    Returns (B, C, ...).
    """
    return d_target.mean(dim=0) + eta * (d_more - d_less).mean(dim=0)


def textual_loss(d_slider: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between the slider-on prediction and its target, a scalar."""
    return F.mse_loss(d_slider.float(), target.float())
