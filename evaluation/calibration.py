"""From effects measured along strength to a calibration: where a slider saturates, where images break, and the map.

f(s) is the mean effect at strength s, f(0) = 0, and d(s) the mean distortion. On each side, outwards from 0:

- it is *saturated* at the smallest strength beyond which f never again rises by a set part of its steepest mean
  slope, max f(s) / s;
- images *break* beyond the largest strength up to which f(s) / d(s) stays above a set part of its largest value.

The useful range ends at the first of the two, or at the largest strength that was measured. Within it the map is the
inverse of f, made monotone by centred isotonic regression (arXiv 1701.05964): pool adjacent violators, and put each
pool at the mean of its strengths, so that what comes out rises strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from ..sliders.calibration import END, Calibration
from ..sliders.gate import Gate

EQUAL_STEPS, EACH_END = "equal steps", "each to its end"
SCALES = (EQUAL_STEPS, EACH_END)
NEAREST = 0.5  # two points of a map lie no nearer to each other on the control
STANDARD_ERRORS = 2.5  # a mean effect beyond so many, at two strengths in a row, is not taken for chance


@dataclass(frozen=True)
class Criteria:
    """What counts as saturated and as broken, see the module; both parts lie in (0, 1).

    scale: what a control of 100 stands for. "equal steps": on both sides the largest effect that the stronger one
        reaches, so that a step is the same effect everywhere, and the weaker side ends before 100. "each to its end":
        on each side the largest effect of that side.
    Raises ValueError for anything else.
    """

    saturated: float = 0.15
    broken: float = 0.5
    scale: str = EQUAL_STEPS

    def __post_init__(self) -> None:
        for name in ("saturated", "broken"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Calibrating: {name} must lie between 0 and 1; got {getattr(self, name)!r}.")
        if self.scale not in SCALES:
            raise ValueError(f"Calibrating: scale must be one of {', '.join(SCALES)}; got {self.scale!r}.")


@dataclass(frozen=True)
class Response:
    """Holds what was measured of a slider along strength, of n images against their originals.

    strengths: S of them, in rising order, without 0. effects: (S, n); the plus side's are positive on the whole.
    distortions: (S, n), of a kind that grows in proportion to a small change. measured_by: what the effect is.
    is_turned_round: True if the texts of the ends say that the plus side is the minus side. spread: the standard
    deviation of the originals on the axis of the effect; 0 if unknown. others: S mean changes of what the slider is
    not for, by name. coherence: S, how far the images change the same way, in [0, 1]; empty if unknown.
    """

    strengths: tuple[float, ...]
    effects: Tensor
    distortions: Tensor
    measured_by: str
    is_turned_round: bool = False
    spread: float = 0.0
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    coherence: tuple[float, ...] = ()

    def at(self, strength: float) -> int:
        """Return the index of a strength."""
        return self.strengths.index(strength)


@dataclass(frozen=True)
class Side:
    """What one side of a slider does.

    sign: 1 or -1. end: the strength, with its sign, at which its useful range ends; 0 if nothing moves.
    reach: the mean effect there, positive. saturated: the strength from which it is; None if it still grew.
    broken: the smallest measured strength at which images are; None if they were not.
    share: of the images that are moved its way at the end, in [0, 1].
    """

    sign: int
    end: float = 0.0
    reach: float = 0.0
    saturated: float | None = None
    broken: float | None = None
    share: float = 0.0

    @property
    def is_settled(self) -> bool:
        """True if more strength would show nothing new."""
        return self.saturated is not None or self.broken is not None


def side_of(response: Response, sign: int, criteria: Criteria) -> Side:
    """Judge the plus side (sign 1) or the minus side (sign -1). Effects that may be chance count for none."""
    outwards = sorted((s for s in response.strengths if s * sign > 0), key=abs)
    rows = [response.at(s) for s in outwards]
    effects, distortions = sign * response.effects[rows].double(), response.distortions[rows].double()
    sure = [_is_sure(each) for each in effects]
    if not any(all(sure[at : at + 2]) for at in range(max(1, len(sure) - 1))):
        return Side(sign)
    means = effects.mean(1)
    sizes, rising = [abs(s) for s in outwards], _without_fall(means.tolist())
    if rising[-1] <= 0:
        return Side(sign)
    saturated = _saturation(sizes, rising, criteria.saturated)
    kept = _unbroken(means.tolist(), distortions.mean(1).tolist(), sure, criteria.broken)
    broken = outwards[kept] if kept < len(outwards) else None
    ends = [size for size in (saturated, abs(outwards[kept - 1])) if size is not None]
    end = min(ends) * sign
    at = outwards.index(end)
    reach, share = float(means[: at + 1].max()), float((effects[at] > 0).double().mean())
    return Side(sign, end, reach, None if saturated is None else saturated * sign, broken, share)


def calibrated(response: Response, sides: Sequence[Side], criteria: Criteria, gate: Gate) -> Calibration:
    """Make the map over the useful range of both sides. gate: that the slider was measured with.

    Raises ValueError if neither side does anything.
    """
    low, high = min(side.end for side in sides), max(side.end for side in sides)
    inside = [s for s in response.strengths if low <= s <= high]
    means = response.effects[[response.at(s) for s in inside]].double().mean(1).tolist() if inside else []
    knots = centred_isotonic(inside, means)
    reach = {1: knots[-1][1], -1: -knots[0][1]}
    if criteria.scale == EQUAL_STEPS:
        reach = dict.fromkeys(reach, max(reach.values()))
    if not any(reach.values()):
        raise ValueError("A slider that moves nothing cannot be calibrated.")
    points = [(END * (effect / reach[1 if effect > 0 else -1]) if effect else 0.0, s) for s, effect in knots]
    return Calibration(_apart(points), response.measured_by, gate)


def centred_isotonic(strengths: Sequence[float], effects: Sequence[float]) -> list[tuple[float, float]]:
    """Return the knots (strength, effect) of the rising curve through effects, both strictly rising, with (0, 0).

    strengths: in rising order, without 0, at which the effect is known to be 0: its pool is put there.
    """
    points = sorted([*zip(strengths, effects), (0.0, 0.0)])
    pools = _pools([y for _, y in points], [inf if x == 0 else 1.0 for x, _ in points])
    knots = []
    for begin, end, y in pools:
        xs = [x for x, _ in points[begin:end]]
        knots.append((0.0, 0.0) if 0.0 in xs else (sum(xs) / len(xs), y))
    return knots


def isotonic(values: Sequence[float]) -> list[float]:
    """Return the rising sequence nearest to values in the least-squares sense (pool adjacent violators)."""
    fitted: list[float] = []
    for begin, end, value in _pools(values, [1.0] * len(values)):
        fitted += [value] * (end - begin)
    return fitted


def largest_deviation(effects: Sequence[float]) -> float:
    """Return how far steps of the effect at equal steps of a control are from equal, at most, relative to their mean.

    effects: at three controls at least, in rising order. 0 is perfect; a step of nothing, or backwards, is 1 or more.
    """
    steps = torch.tensor(effects, dtype=torch.float64).diff()
    return float((steps / steps.mean() - 1).abs().max())


def _pools(values: Sequence[float], weights: Sequence[float]) -> list[tuple[int, int, float]]:
    """Pool adjacent violators: (begin, end, mean) of each pool, means strictly rising. A weight may be infinite."""
    pools: list[tuple[int, int, float, float]] = []
    for at, (value, weight) in enumerate(zip(values, weights)):
        begin = at
        while pools and pools[-1][2] >= value:
            begin, _, other, heavier = pools.pop()
            value, weight = _mean(value, weight, other, heavier), weight + heavier
        pools.append((begin, at + 1, value, weight))
    return [(begin, end, value) for begin, end, value, _ in pools]


def _mean(value: float, weight: float, other: float, heavier: float) -> float:
    if inf in (weight, heavier):
        return value if weight == inf else other
    return (value * weight + other * heavier) / (weight + heavier)


def _is_sure(effects: Tensor) -> bool:
    """Return True if the mean of n effects is positive beyond chance; of one image, if it is positive."""
    mean = effects.mean()
    error = effects.std() / len(effects) ** 0.5 if len(effects) > 1 else torch.zeros(())
    return bool(mean > 0 and mean > STANDARD_ERRORS * error)


def _without_fall(means: Sequence[float]) -> list[float]:
    """Make outward means of the effect rise up to their largest, and stay there: what turns back counts as flat."""
    peak = max(range(len(means)), key=means.__getitem__)
    rising = isotonic(means[: peak + 1])
    return rising + [rising[-1]] * (len(means) - peak - 1)


def _saturation(sizes: Sequence[float], rising: Sequence[float], part: float) -> float | None:
    """Return the size of strength from which a curve rises by less than that part of its steepest slope, or None."""
    steepest = max(effect / size for size, effect in zip(sizes, rising))
    xs, ys = [0.0, *sizes], [0.0, *rising]
    steps = [(y1 - y0) / (x1 - x0) >= part * steepest for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:])]
    last = max(at for at, steep in enumerate(steps) if steep)
    return sizes[last] if last < len(sizes) - 1 else None


def _unbroken(means: Sequence[float], distortions: Sequence[float], sure: Sequence[bool], part: float) -> int:
    """Return how many strengths, outwards, have an effect per distortion above a part of the largest up to there."""
    largest = 0.0
    for at, (mean, distortion) in enumerate(zip(means, distortions)):
        ratio = mean / distortion if distortion > 0 else inf
        if largest and ratio < part * largest:
            return at
        if sure[at] and ratio < inf:
            largest = max(largest, ratio)
    return len(means)


def _apart(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Leave out points whose control is all but that of another; the ends and 0 stay."""
    fixed = {points[0], points[-1], (0.0, 0.0)}
    kept: list[tuple[float, float]] = []
    for point in points:
        near_fixed = any(abs(point[0] - control) < NEAREST for control, _ in fixed)
        near_kept = bool(kept) and point[0] - kept[-1][0] < NEAREST
        if point in fixed or not (near_fixed or near_kept):
            kept.append(point)
    return tuple(kept)
