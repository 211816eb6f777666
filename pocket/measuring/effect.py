"""What a slider does, in numbers: the probe's readings along its strengths.

All functions are pure. Readings are (pictures, strengths, attributes): one row of pictures for each person,
one column for each strength, in rising order, values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Effect:
    """How one slider moved the attribute it is for, and the others.

    means: (strengths, attributes). spearman: of the attribute's means with the strengths.
    span: the attribute's mean at the last strength minus that at the first. reach: the same between the
    opposing prompts. movements: for every other attribute, how far its mean moved from end to end. each: for every
    other one, how far it moved in a picture, from end to end, whichever way, on average. apart: attributes that the
    world ties to this one, which the averages leave out.
    """

    strengths: tuple[float, ...]
    attributes: tuple[str, ...]
    means: np.ndarray
    attribute: str
    spearman: float
    span: float
    reach: float
    movements: dict[str, float]
    each: dict[str, float]
    apart: tuple[str, ...] = ()

    @property
    def mean_movement(self) -> float:
        """Of all other attributes that are not apart, as a fraction of their range."""
        return self._mean_of(self.movements)

    @property
    def mean_movement_of_each(self) -> float:
        """The same of single pictures, where opposite movements do not cancel out."""
        return self._mean_of(self.each)

    def _mean_of(self, moved: dict[str, float]) -> float:
        return float(np.mean([by for name, by in moved.items() if name not in self.apart]))


def effect(
    readings: np.ndarray,
    strengths: Sequence[float],
    attributes: Sequence[str],
    attribute: str,
    reach: float,
    apart: Sequence[str] = (),
) -> Effect:
    """Sum up readings (pictures, strengths, attributes) of a sweep.

    reach: distance of the attribute's mean between the opposing prompts. apart: attributes that are tied to it.
    Raises ValueError if the shapes do not fit.
    """
    if readings.ndim != 3 or readings.shape[1:] != (len(strengths), len(attributes)):
        raise ValueError(f"Readings must be (pictures, {len(strengths)}, {len(attributes)}), got {readings.shape}.")
    means = readings.mean(axis=0)
    moved = dict(zip(attributes, (means[-1] - means[0]).tolist()))
    each = dict(zip(attributes, np.abs(readings[:, -1] - readings[:, 0]).mean(axis=0).tolist()))
    return Effect(
        tuple(strengths),
        tuple(attributes),
        means,
        attribute,
        spearman(strengths, means[:, list(attributes).index(attribute)]),
        moved[attribute],
        reach,
        {name: abs(by) for name, by in moved.items() if name != attribute},
        {name: by for name, by in each.items() if name != attribute},
        tuple(apart),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank. 0 where one side does not vary."""
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[:, None] > values[None]).sum(axis=1)
    equal = (values[:, None] == values[None]).sum(axis=1)
    return below + (equal - 1) / 2
