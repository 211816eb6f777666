"""Scores of images, as pure functions of embeddings: CLIP score, embedding distance, Fréchet distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosine of embeddings of images and of texts, in [-1, 1].

    images: (..., E). texts: (..., E) or (E,), of the encoder that was trained together with the images'.
    """
    return F.cosine_similarity(images.double(), texts.double(), dim=-1)


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """Return the CLIP score in points, 100 cos(image, text); see `alignment`.

    Source: arXiv 2104.08718, without its cut at zero and its factor 2.5, as logits of CLIP (arXiv 2103.00020) are and
    as the tables of Concept Sliders (arXiv 2311.12092) have it.
    """
    return 100 * alignment(images, texts)


def delta_clip_score(edited: Tensor, original: Tensor, text: Tensor) -> Tensor:
    """Return how far an edit moved images towards its text, in points of CLIP score; negative is away from it.

    edited, original: (..., E). text: (E,), of the edit. The published tables (arXiv 2311.12092, table 1) take the
    absolute value of this, in which a movement the wrong way counts like one the right way.
    """
    return clip_score(edited, text) - clip_score(original, text)


def embedding_distance(images: Tensor, others: Tensor) -> Tensor:
    """Return 1 - cos of the embeddings (..., E) of two images, in [0, 2]; 0 for the same image."""
    return (1 - F.cosine_similarity(images.double(), others.double(), dim=-1)).clamp(min=0)  # 0 but for rounding


def frechet_distance(images: Tensor, others: Tensor) -> float:
    """Return the Fréchet distance of two sets of embeddings, (n, E) and (m, E), each taken for a Gaussian.

    |mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with unbiased covariances (arXiv 1706.08500, equation 6).
    With A and B the centred sets, C1 = A^T A / (n - 1) and C2 = B^T B / (m - 1), so that the trace of (C1 C2)^(1/2)
    is the sum of the singular values of A B^T / sqrt((n - 1)(m - 1)), or of their triangles': no root of a singular
    matrix is taken, however few the images are. Few images overestimate it: compare only figures of equally many.
    Raises ValueError for fewer than two images in a set, or embeddings of different widths.
    """
    if images.ndim != 2 or others.ndim != 2 or images.shape[1] != others.shape[1]:
        raise ValueError(
            f"A Fréchet distance takes two sets of embeddings of one width; got {tuple(images.shape)} and "
            f"{tuple(others.shape)}."
        )
    if min(len(images), len(others)) < 2:
        raise ValueError(f"A Fréchet distance takes at least two images a set; got {len(images)} and {len(others)}.")
    (mean, spread), (other_mean, other_spread) = _moments(images), _moments(others)
    mixed = torch.linalg.svdvals(spread @ other_spread.T).sum()
    distance = (mean - other_mean).square().sum() + spread.square().sum() + other_spread.square().sum() - 2 * mixed
    return max(0.0, float(distance))


def _moments(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (E,), and a matrix S of E columns with S^T S the unbiased covariance.

    Of many embeddings it is the triangle of their QR decomposition, (E, E).
    """
    values = embeddings.double()
    mean = values.mean(0)
    spread = (values - mean) / (len(values) - 1) ** 0.5
    return mean, torch.linalg.qr(spread, mode="r").R if len(spread) > spread.shape[1] else spread
