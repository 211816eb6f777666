"""The losses, one function each, on predictions in the model's linear form d = (x - denoised) / sigma."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def textual_target(d_target: Tensor, d_more: Tensor, d_less: Tensor, eta: Tensor | float) -> Tensor:
    """What the slider-on model should predict at c_t (Concept Sliders, arXiv 2311.12092, eq. 8).

        d_target + eta * mean_p [ d(c+ & p) - d(c- & p) ]

    d_target: (B, C, ...), the frozen prediction at the target prompt.
    d_more, d_less: (P, B, C, ...), the frozen predictions at both ends, one for each phrase p.
    eta: a number, or (B, 1, ...) for one per row; negative for the opposite edit.
    The paper sums over p; the mean keeps eta's meaning whatever the number of phrases.
    Returns (B, C, ...).
    """
    return d_target + eta * (d_more - d_less).mean(dim=0)


def textual_loss(d_slider: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between the slider-on prediction and its target, a scalar."""
    return F.mse_loss(d_slider.float(), target.float())
