"""What a slider of SliderSpace learns (arXiv 2502.01639, section 3): to move an embedding along its direction."""

from __future__ import annotations

from torch import Tensor

STILL = 1e-4  # an embedding, of unit length, that moved less than this has hardly moved: its gradient stays finite


def direction_loss(with_slider: Tensor, without: Tensor, directions: Tensor) -> Tensor:
    """1 - cos(phi(x0 with slider i) - phi(x0), v_i), one for each row: (B,), in [0, 2].

    with_slider, without: embeddings of the predicted clean images, (B, D). directions: v of each row, (B, D).
    """
    return 1 - cosine(with_slider - without, directions)


def cosine(moved: Tensor, directions: Tensor) -> Tensor:
    """(..., D), (..., D) -> (...); of what has not moved it is 0."""
    moved, directions = moved.float(), directions.float()
    along = (moved * directions).sum(-1)
    return along / ((moved.square().sum(-1) + STILL**2).sqrt() * directions.norm(dim=-1))
