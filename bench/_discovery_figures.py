"""Figures of discovered directions, as pure functions of readings and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from concept_sliders.pocket.measuring.figures import correlation
from concept_sliders.pocket.measuring.probe import COLUMNS
from concept_sliders.pocket.world.portrait import STYLES
from torch import Tensor

GROUPS = {  # those that the pocket world ties together count as one
    "age": ("age", "glasses", "hair_shade"),
    "style": STYLES,
    **{name: (name,) for name in COLUMNS if name not in ("age", "glasses", "hair_shade", *STYLES)},
}


def of_groups(readings: Tensor) -> Tensor:
    """(..., 16) readings or their differences -> (..., groups): of each group the member that is largest."""
    columns = [readings[..., [COLUMNS.index(name) for name in names]] for names in GROUPS.values()]
    return torch.stack([each.gather(-1, each.abs().argmax(-1, keepdim=True))[..., 0] for each in columns], dim=-1)


def purity(movements: Tensor) -> Tensor:
    """(K, groups) movements -> (K, groups), each group's share of all movement of a direction."""
    return movements.abs() / movements.abs().sum(-1, keepdim=True).clamp(min=1e-9)


def groups_moved(movements: Tensor, least: float = 0.3, pure: float = 0.5) -> list[str]:
    """Return the groups that some direction moves by `least` of the range, with this purity: of (K, groups)."""
    moved = ((movements.abs() >= least) & (purity(movements) >= pure)).any(0)
    return [name for name, holds in zip(GROUPS, moved.tolist()) if holds]


def moves_other_than_style(movements: Tensor) -> Tensor:
    """Return for each direction whether it moves another group more than style: (K, groups) -> (K,)."""
    return movements.abs().argmax(1) != list(GROUPS).index("style")


def ceiling(readings: Tensor, embeddings: Tensor, directions: Tensor) -> dict[str, float]:
    """Return the largest |correlation| of each attribute with a coordinate along one of the directions (K, D)."""
    along = embeddings @ directions.T
    return {
        name: max(abs(correlation(readings[:, at], along[:, k])) for k in range(len(directions)))
        for at, name in enumerate(COLUMNS)
    }


def mean_distance(embeddings: Tensor) -> float:
    """Return the mean distance, 1 - cos, of two different ones of (N, D)."""
    unit = F.normalize(embeddings.double(), dim=1)
    count = len(unit)
    return float(1 - ((unit @ unit.T).sum() - count) / (count * (count - 1)))


def gap_closed(value: float, start: float, goal: float) -> float:
    """Return how much of the way from `start` to `goal` a figure has gone: 0 none, 1 all."""
    return (value - start) / (goal - start)


def interval(values: Sequence[float]) -> str:
    """Return the mean, and twice the standard error, in words."""
    of = torch.tensor(values, dtype=torch.float64)
    if len(of) < 2:
        return f"{of.mean():.3f} (one set of seeds)"
    return f"{of.mean():.3f} ± {2 * of.std() / len(of) ** 0.5:.3f}"
