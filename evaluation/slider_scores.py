"""Scores of a slider as a whole, over all its strengths: CR, CSM, SP and OS (FreeSliders, arXiv 2511.00103).

a(x, c) is the alignment of an image with a text, x_s the image at strength s, c+ and c- the texts of more and less.
The smoothness is computed as the authors' own evaluation code does.
"""

from __future__ import annotations

import torch
from torch import Tensor

STABLE = 1.0  # epsilon of the overall score, as published


def conceptual_range(more: Tensor, less: Tensor) -> Tensor:
    """Return the conceptual range, CR = (a(x_max, c+) - a(x_min, c+) + a(x_min, c-) - a(x_max, c-)) / 2.

    more, less: (..., S) alignments, or CLIP scores, of the images with the two texts, in rising order of strength.
    Returns (...,) in the same unit. Larger is better; negative is a slider that turns the wrong way.
    """
    return ((more[..., -1] - more[..., 0]) + (less[..., 0] - less[..., -1])) / 2


def conceptual_smoothness(more: Tensor, less: Tensor) -> Tensor:
    """Return the conceptual smoothness, CSM: the standard deviation of the gaps between neighbouring alignments.

    more: (..., P) cosines in [0, 1] of the images at strengths 0, ... s_max with c+, outwards; less: (..., N) those
    of the images at 0, ... s_min with c-. Either side may lack all but 0. On each side 0 and 1 stand before and
    after; gaps that fall are left out; those of both sides are taken together. Returns (...,). Smaller is smoother.
    """
    gaps = torch.cat([_gaps(more), _gaps(less)], dim=-1)
    rising = gaps >= 0
    count = rising.sum(-1).clamp(min=1)
    mean = torch.where(rising, gaps, 0.0).sum(-1) / count
    squares = torch.where(rising, (gaps - mean[..., None]).square(), 0.0)
    return (squares.sum(-1) / count).sqrt()


def semantic_preservation(distances: Tensor) -> Tensor:
    """Return the semantic preservation, SP: the mean distance to the original, (..., S) -> (...,).

    distances: of the images at all strengths but 0, by LPIPS as published. Smaller is better.
    """
    return distances.mean(-1)


def overall_score(range_: Tensor, smoothness: Tensor, preservation: Tensor) -> Tensor:
    """Return the overall score, OS = CR / (1 + SP) + (1 - CSM). Larger is better."""
    return range_ / (STABLE + preservation) + (1 - smoothness)


def _gaps(alignments: Tensor) -> Tensor:
    """(..., S) -> (..., S + 1): differences of neighbours, from 0 to the first and from the last to 1."""
    if alignments.shape[-1] < 2:  # nothing but the original: no side
        return alignments[..., :0]
    edge = alignments[..., :1]
    return torch.diff(alignments, dim=-1, prepend=torch.zeros_like(edge), append=torch.ones_like(edge))
