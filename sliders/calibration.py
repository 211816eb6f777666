"""Calibrated units: a control from -100 to 100 whose equal steps change images equally, as a map to strengths."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from .gate import Gate

END = 100.0  # of the control, to either side
_DIGITS = 6  # significant, in files


@dataclass(frozen=True)
class Calibration:
    """A map from controls to strengths, linear between its points and rising: control 0 is strength 0, which is off.

    points: (control, strength), both rising, with controls in [-100, 100]. A side whose last control is nearer to 0
        than 100 reaches less far than the other: beyond it there is nothing more to be had.
    measured_by: what the effect was measured by, in words. gate: the window of sampling it was measured with.
    Raises ValueError for other points.
    """

    points: tuple[tuple[float, float], ...]
    measured_by: str = ""
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        numbers = [number for point in self.points for number in point]
        if len(self.points) < 2 or not all(map(isfinite, numbers)):
            raise ValueError(f"A calibration takes two points of finite numbers at least; got {self.points}.")
        rising = all(a < b and s < t for (a, s), (b, t) in zip(self.points, self.points[1:]))
        if not rising or (0.0, 0.0) not in self.points or not -END <= self.low < self.high <= END:
            raise ValueError(
                "A calibration's controls rise from -100 or more to 100 or less, its strengths rise with them, and "
                f"control 0 is strength 0; got {self.points}."
            )

    @property
    def low(self) -> float:
        """The control at which the minus side ends; 0 if it has none."""
        return self.points[0][0]

    @property
    def high(self) -> float:
        """The control at which the plus side ends; 0 if it has none."""
        return self.points[-1][0]

    @property
    def useful_range(self) -> tuple[float, float]:
        """The strengths at both ends."""
        return self.points[0][1], self.points[-1][1]

    def strength(self, control: float) -> float:
        """Return the strength of a control; beyond an end, that of the end."""
        return interpolated(control, *zip(*self.points))

    def control(self, strength: float) -> float:
        """Return the control of a strength; beyond an end, that of the end."""
        controls, strengths = zip(*self.points)
        return interpolated(strength, strengths, controls)

    def at_strength(self, strength: float) -> Calibration:
        """Return the calibration of the same slider with a strength in its weights, which is not 0.

        A negative one exchanges the sides.
        """
        sign = 1 if strength > 0 else -1
        points = sorted((sign * control + 0.0, value / strength + 0.0) for control, value in self.points)
        return Calibration(tuple(points), self.measured_by, self.gate)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, for a file's header."""
        points = [[_rounded(number) for number in point] for point in self.points]
        return {"points": points, "measured_by": self.measured_by, "gate": asdict(self.gate)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Calibration:
        """Make it of the values that `as_json` returns.

        Raises ValueError, TypeError or KeyError for any others.
        """
        points = tuple((float(control), float(strength)) for control, strength in values["points"])
        return Calibration(points, str(values.get("measured_by", "")), Gate(**values.get("gate", {})))


def interpolated(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return y at x = `at`, linear between points whose xs rise; beyond them, the first or the last y."""
    right = bisect_right(xs, at)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    (x0, x1), (y0, y1) = xs[right - 1 : right + 1], ys[right - 1 : right + 1]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
