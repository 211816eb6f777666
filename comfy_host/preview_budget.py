"""How much of a run's time goes into looks at what it is making."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management

SHARE = 0.04  # of the time that looks take, at most


class Looks:
    """How much of a run's time looks take, and whether there is time for one more.

    at_most: that share, in (0, 1]. now: the time in seconds, from any start.
    """

    def __init__(self, at_most: float = SHARE, now: Callable[[], float] = time.monotonic):
        self.at_most, self._now, self._began = at_most, now, now()
        self._spent, self._last = 0.0, 0.0

    @property
    def share(self) -> float:
        """Of the time since the beginning, in [0, 1]."""
        return self._spent / max(self._now() - self._began, 1e-9)

    def has_time(self) -> bool:
        """Whether, after one more like the last, all looks together have taken no more than their share."""
        return self._spent + self._last <= self.at_most * (self._now() - self._began + self._last)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The block is a look. A device that works on by itself is waited for, before and after."""
        comfy.model_management.synchronize()
        began = self._now()
        try:
            yield
        finally:
            comfy.model_management.synchronize()
            self._last = self._now() - began
            self._spent += self._last
