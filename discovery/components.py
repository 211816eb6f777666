"""What varies: principal components of embeddings, and how many of them are worth a slider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 64  # directions that are proposed; published gains saturate at 40
LEAST_VARIANCE = 1e-10  # of the mean square: below it are errors of rounding
LEAST_VARIANCE_IN_HALF = 1e-6  # and of numbers that were kept in half precision


@dataclass(frozen=True)
class Components:
    """mean: (D,). directions: (K, D), orthonormal, the widest first. deviations: (K,), the standard deviation of the
    embeddings along each. explained: (K,), its share of the whole variance.
    """

    mean: Tensor
    directions: Tensor
    deviations: Tensor
    explained: Tensor

    def __len__(self) -> int:
        return len(self.directions)

    def chosen(self, indices: Sequence[int]) -> Components:
        """Some of them."""
        at = list(indices)
        return Components(self.mean, self.directions[at], self.deviations[at], self.explained[at])


def principal_components(embeddings: Tensor, count: int = 0) -> Components:
    """PCA of embeddings (N, D) by the eigenvectors of their covariance, or of their products where N < D.

    count: how many; 0 proposes a number, see `effective_rank`. Each direction's largest entry is positive.
    Raises ValueError if there are fewer embeddings than directions, or they do not vary.
    """
    if len(embeddings) <= max(count, 1):
        raise ValueError(f"{count or 1} directions need more samples than that; got {len(embeddings)}.")
    samples = embeddings.double()
    mean = samples.mean(0)
    variances, directions = _eigenvectors(samples - mean)
    if variances[0] <= 1e-12 * samples.square().sum(1).mean():
        raise ValueError(
            "All samples have the same embedding: there is nothing to tell apart. Use more seeds, a prompt that "
            "leaves more open, or another encoder."
        )
    explained = variances / variances.sum()
    significant = int((variances > 1e-10 * variances[0]).sum())
    kept = min(count or proposed_count(explained), significant)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    parts = (mean, (directions * largest.sign())[:kept], variances.sqrt()[:kept], explained[:kept])
    return Components(*(part.float() for part in parts))


def _eigenvectors(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances, falling, and directions, (K,) and (K, D), of centred samples (N, D); K = min(N, D)."""
    degrees, wide = len(centred) - 1, len(centred) < centred.shape[1]
    products = centred @ centred.T if wide else centred.T @ centred
    variances, vectors = torch.linalg.eigh(products / degrees)
    variances, directions = variances.flip(0).clamp(min=0), vectors.T.flip(0)
    if wide:  # v = X^T u / |X^T u|
        directions = F.normalize(directions @ centred, dim=1)
    return variances, directions


def components_along(embeddings: Tensor, vectors: Tensor) -> Components:
    """Return given directions, (K, D) of any length, with how far embeddings (N, D) vary along each.

    They need not be orthogonal: shares of the variance may then count twice.
    """
    mean, directions = embeddings.mean(0), F.normalize(vectors, dim=1)
    varying = embeddings - mean
    variances = (varying @ directions.T).square().sum(0) / (len(embeddings) - 1)
    whole = varying.square().sum() / (len(embeddings) - 1)
    return Components(mean, directions, variances.sqrt(), variances / whole.clamp(min=1e-12))


def varies(values: Tensor, least: float = LEAST_VARIANCE) -> bool:
    """Return True if the entries of (N, ...) differ from each other by more than rounding."""
    whole = values.square().mean()
    return bool((values - values.mean(0)).square().mean() > least * whole)


def effective_rank(explained: Tensor) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli, 2007): as many equal ones vary as much."""
    shares = explained[explained > 0]
    return torch.exp(-(shares * shares.log()).sum()).item()


def proposed_count(explained: Tensor) -> int:
    """How many directions to train, by the shares of variance of all."""
    return min(ceil(effective_rank(explained)), MOST)


def without(embeddings: Tensor, unwanted: Tensor) -> Tensor:
    """Take the span of some vectors, (M, D), out of embeddings (N, D), such as that of style words."""
    basis = torch.linalg.qr(unwanted.double().T).Q  # (D, M)
    samples = embeddings.double()
    return (samples - samples @ basis @ basis.T).to(embeddings.dtype)
