"""Independent components: directions along which images vary regardless of each other.

Principal components are orthogonal, and those of about the same width come out in any mixture: a wide one may be half
a sex and half a style. What is independent is told apart by its distribution (FastICA, Hyvärinen 1999): a mixture of
many causes is nearer to a normal distribution than each of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .components import Components, principal_components

ITERATIONS, SETTLED = 500, 1e-7
SAMPLES_A_COMPONENT = 4  # at least, to tell one from another


def independent_components(images: Tensor, within: Components) -> Components:
    """Return what moves the embeddings of images, (N, D), inside the span of orthonormal directions, (K, D).

    With z the whitened coordinates in that span and s = W z independent, each direction is a column of the mixing
    matrix: the change of the embedding by one standard deviation of one s, and as long as that. They are not
    orthogonal. Widest first; the shares of the variance are of all that `within` explains.
    """
    mean = images.mean(0)
    inside = (images - mean) @ within.directions.T  # (N, K)
    own = principal_components(inside, len(within))
    unmixing = rotation((inside @ own.directions.T / own.deviations).double()).float()
    moved = unmixing * own.deviations @ own.directions @ within.directions  # (K, D)
    deviations = moved.norm(dim=1)
    order = deviations.argsort(descending=True)
    shares = deviations.square() / deviations.square().sum() * within.explained.sum()
    largest = moved.gather(1, moved.abs().argmax(1, keepdim=True))
    directions = F.normalize(moved * largest.sign(), dim=1)
    return Components(mean, directions[order], deviations[order], shares[order])


def rotation(z: Tensor) -> Tensor:
    """Return the orthogonal matrix (K, K) that turns whitened samples (N, K) into independent ones.

    Symmetric FastICA with g = tanh, from the identity: W <- E[g(W z) z^T] - diag(E[g'(W z)]) W, made orthogonal.
    """
    turned = torch.eye(z.shape[1], dtype=z.dtype)
    for _ in range(ITERATIONS):
        before, g = turned, torch.tanh(z @ turned.T)
        u, _, v = torch.linalg.svd(g.T @ z / len(z) - (1 - g.square()).mean(0)[:, None] * turned)
        turned = u @ v
        if (1 - (turned * before).sum(1).abs()).max() < SETTLED:
            break
    return turned
