"""The losses, one function each, on predictions in the model's linear form d = (x - denoised) / sigma."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def textual_change(d_more: Tensor, d_less: Tensor) -> Tensor:
    """Return the direction of a concept (Concept Sliders, arXiv 2311.12092, eq. 8): mean_p [ d(c+ & p) - d(c- & p) ].

    d_more, d_less: (P, B, C, ...), the frozen predictions at both ends, one for each phrase p to preserve.
    The paper sums over p; the mean keeps eta's meaning whatever the number of phrases.
    Returns (B, C, ...).
    """
    return (d_more - d_less).mean(dim=0)


def textual_target(d_target: Tensor, change: Tensor, eta: Tensor | float) -> Tensor:
    """Return what the model with the slider is to predict at c_t (arXiv 2311.12092, eq. 8): d(c_t) + eta * change.

    d_target: (B, C, ...), the frozen prediction at the target prompt, as the paper has it, or `preserved_target`.
    change: (B, C, ...), see `textual_change`. eta: a number, or (B, 1, ...) for one per batch entry; negative for the
        opposite edit.
    """
    return d_target + eta * change


def preserved_target(d_phrased: Tensor, d_phrased_twin: Tensor, d_twin: Tensor) -> Tensor:
    """Return d(c_t) on an image x that the slider has changed, all that phrases name being as it is without it:

        mean_p d(c_t & p; x)  +  d(c_t; x') - mean_p d(c_t & p; x')

    x' is the twin of x, of the same noise without the slider. Once a face has grown old the model expects glasses
    on it: d(c_t; x) - mean_p d(c_t & p; x) is what it adds to even odds. In place of that stands what it adds on the
    twin, so that there are glasses if there are some without the slider. Neither the paper nor its code has it.

    d_phrased, d_phrased_twin: (P, B, C, ...), frozen, at the target with each phrase, on x and on x'.
    d_twin: (B, C, ...), frozen, at the target on x'.
    Returns (B, C, ...).
    """
    return d_phrased.mean(dim=0) + d_twin - d_phrased_twin.mean(dim=0)


def prediction_loss(d_slider: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error between the prediction with the slider and its target, a scalar.

    d_slider, target: (B, C, ...). mask: in [0, 1], broadcast to them; the mean is then over what it lets through.
    """
    squares = F.mse_loss(d_slider.float(), target.float(), reduction="none")
    if mask is None:
        return squares.mean()
    weights = mask.to(squares).expand_as(squares)
    return (squares * weights).sum() / weights.sum().clamp(min=1e-6)
