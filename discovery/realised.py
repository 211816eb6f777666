"""What trained directions turn out to do: the mean change of the embedding on images not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ALIKE = 0.9  # cosine of two realised directions above which one of them is enough


@dataclass(frozen=True)
class Realised:
    """Figures of K directions.

    own: (K,), the cosine of each slider's change with its own component. own_is_highest: (K,), whether no other
    component has a higher one. mutual: the mean |cosine| between the changes of two sliders. lengths: (K,), of the
    changes.
    """

    own: Tensor
    own_is_highest: Tensor
    mutual: float
    lengths: Tensor


def realised(changes: Tensor, components: Tensor) -> Realised:
    """Compare mean changes of the embedding, (K, D), with the components they were trained for, (K, D)."""
    with_components = F.normalize(changes, dim=-1) @ F.normalize(components, dim=-1).T
    return Realised(
        with_components.diagonal(),
        with_components.argmax(1) == torch.arange(len(changes)),
        mutual_cosine(changes),
        changes.norm(dim=-1),
    )


def mutual_cosine(changes: Tensor) -> float:
    """The mean |cosine| between two of (K, D); 0 of a single one."""
    if len(changes) < 2:
        return 0.0
    first, second = torch.triu_indices(len(changes), len(changes), offset=1)
    return _cosines(changes)[first, second].abs().mean().item()


def distinct(changes: Tensor) -> list[int]:
    """Indices of (K, D), in order, without those whose change is that of an earlier one, or its opposite."""
    cosines = _cosines(changes).abs()
    chosen: list[int] = []
    for index in range(len(changes)):
        if not any(cosines[index, earlier] > ALIKE for earlier in chosen):
            chosen.append(index)
    return chosen


def _cosines(changes: Tensor) -> Tensor:
    unit = F.normalize(changes, dim=-1)
    return unit @ unit.T
