"""How much of a run's time previews may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management

SHARE = 0.04  # of a run's time, at most


class PreviewBudget:
    """Measures the time that previews take, and says whether there is time for one more.

    at_most: their share of the run's time, in (0, 1]. now: the time in seconds, from any start.
    """

    def __init__(self, at_most: float = SHARE, now: Callable[[], float] = time.monotonic):
        self.at_most, self._now, self._began = at_most, now, now()
        self._spent, self._last = 0.0, 0.0

    @property
    def share(self) -> float:
        """The previews' share of the time since the beginning, in [0, 1]."""
        return self._spent / max(self._now() - self._began, 1e-9)

    def has_time(self) -> bool:
        """Return True if all previews stay within their share after one more like the last."""
        return self._spent + self._last <= self.at_most * (self._now() - self._began + self._last)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the block as a preview. The device is waited for, before and after."""
        comfy.model_management.synchronize()
        began = self._now()
        try:
            yield
        finally:
            comfy.model_management.synchronize()
            self._last = self._now() - began
            self._spent += self._last
