"""When in sampling a slider acts, and by what factor of its strength."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

PercentToSigma = Callable[[float], float]

# float64 has 52 bits of fraction: more halvings of [0, 1] would change nothing
_HALVINGS = 52
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """A window of sampling in which a slider acts, in the fractions of ConditioningSetTimestepRange.

    `start` and `end` are fractions of sampling, 0 its beginning and 1 its end. It is open where
    sigma(start) >= sigma > sigma(end), and down to the last sigma if `end` is 1: of two windows that meet, one acts.
    With a `ramp`, a fraction of sampling too,
    the factor rises linearly from 0 at `start` to 1 at `start + ramp`; where the window closes before the
    end of sampling it falls in the same way, from 1 at `end - ramp` to 0 at `end`.

    Raises ValueError unless 0 <= start < end <= 1 and the ramps fit into the window.
    """

    start: float = 0.0
    end: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                "A gate opens at its start and closes at its end, with 0 <= start < end <= 1; "
                f"got start {self.start} and end {self.end}."
            )
        ramps = 2 if self.falls else 1
        room = (self.end - self.start) / ramps
        if not 0.0 <= self.ramp <= room + _ROUNDING:
            raise ValueError(
                f"The gate's ramp must lie between 0 and {room:g} "
                f"to fit between start {self.start} and end {self.end}"
                f"{' twice, once at each end' if self.falls else ''}; got {self.ramp}."
            )

    @property
    def falls(self) -> bool:
        """True if the window closes before the end of sampling."""
        return self.end < 1.0

    @property
    def always_open(self) -> bool:
        """True if the factor is 1 throughout sampling."""
        return self.start == 0.0 and self.end == 1.0 and self.ramp == 0.0

    def factor(self, percent: float) -> float:
        """Return the factor of the strength, in [0, 1], at a fraction of sampling in [0, 1]."""
        if percent < self.start or (self.falls and percent >= self.end):
            return 0.0
        if self.ramp == 0.0:
            return 1.0
        rise = (percent - self.start) / self.ramp
        fall = (self.end - percent) / self.ramp if self.falls else 1.0
        return min(1.0, rise, fall)

    def factor_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """Return the factor at a sigma, given the model's decreasing map from fraction of sampling to sigma.

        The window itself is decided on sigmas, never on fractions, so that it opens on exactly the steps on which
        ComfyUI's own conditioning ranges do. It closes there as well, but for a sigma that is sigma(end) itself:
        ComfyUI's range still has it.
        """
        if self.always_open:
            return 1.0
        if sigma > percent_to_sigma(self.start) or (self.falls and sigma <= percent_to_sigma(self.end)):
            return 0.0
        if self.ramp == 0.0 or self._is_full(sigma, percent_to_sigma):
            return 1.0
        percent = percent_of(sigma, percent_to_sigma)
        return self.factor(min(max(percent, self.start), self.end))

    def _is_full(self, sigma: float, percent_to_sigma: PercentToSigma) -> bool:
        """Return True if a sigma within the window lies on neither ramp."""
        risen = sigma <= percent_to_sigma(self.start + self.ramp)
        return risen and not (self.falls and sigma < percent_to_sigma(self.end - self.ramp))


def percent_of(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """Find the fraction of sampling at which a decreasing `percent_to_sigma` reaches `sigma`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return high


def combined_gate(gates: Iterable[Gate]) -> Gate | None:
    """Return the one gate whose factor is the product of these everywhere, or None if no single gate is that."""
    gates = [gate for gate in gates if not gate.always_open]
    ramped = [gate for gate in gates if gate.ramp]
    start = max((gate.start for gate in gates), default=0.0)
    end = min((gate.end for gate in gates), default=1.0)
    if start >= end:
        return None
    if not ramped:
        return Gate(start, end)
    first = ramped[0]  # the others must neither cut into it nor have ramps of their own
    alone = len(set(ramped)) == len(ramped) == 1 and (first.start, first.end) == (start, end)
    return first if alone else None
