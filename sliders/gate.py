"""When in sampling a slider acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PercentToSigma = Callable[[float], float]

# float64 has 52 bits of fraction: more halvings of [0, 1] would change nothing
_HALVINGS = 52
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """A window of sampling in which a slider acts, as ConditioningSetTimestepRange means it.

    `start` and `end` are fractions of sampling, 0 its beginning and 1 its end. Both borders belong to the
    window: it is open while sigma(end) <= sigma <= sigma(start). With a `ramp`, a fraction of sampling too,
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
        """Whether the window closes before the end of sampling."""
        return self.end < 1.0

    @property
    def always_open(self) -> bool:
        """Whether the factor is 1 throughout sampling."""
        return self.start == 0.0 and self.end == 1.0 and self.ramp == 0.0

    def factor(self, percent: float) -> float:
        """The factor of the strength, in [0, 1], at a fraction of sampling in [0, 1]."""
        if not self.start <= percent <= self.end:
            return 0.0
        if self.ramp == 0.0:
            return 1.0
        rise = (percent - self.start) / self.ramp
        fall = (self.end - percent) / self.ramp if self.falls else 1.0
        return min(1.0, rise, fall)

    def factor_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """The factor at a noise level, given the model's decreasing map from fraction of sampling to sigma.

        The window itself is decided on sigmas, never on fractions, so that it opens and closes on exactly the
        steps on which the host's own conditioning ranges do.
        """
        if self.always_open:
            return 1.0
        if sigma > percent_to_sigma(self.start) or sigma < percent_to_sigma(self.end):
            return 0.0
        if self.ramp == 0.0 or self._is_full(sigma, percent_to_sigma):
            return 1.0
        percent = percent_of(sigma, percent_to_sigma)
        return self.factor(min(max(percent, self.start), self.end))

    def _is_full(self, sigma: float, percent_to_sigma: PercentToSigma) -> bool:
        """Whether a noise level within the window lies on neither ramp."""
        risen = sigma <= percent_to_sigma(self.start + self.ramp)
        return risen and not (self.falls and sigma < percent_to_sigma(self.end - self.ramp))


def percent_of(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """The fraction of sampling at which a decreasing `percent_to_sigma` reaches `sigma`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return high
