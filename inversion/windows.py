"""When in sampling a step's embedding is active: the host's windows of percent around each noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..sliders.gate import percent_of


def windows(sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]) -> list[tuple[float, float]]:
    """(start_percent, end_percent) for every level but the last: exactly its own is active at each.

    sigmas: (n + 1,), falling. percent_to_sigma: the model's, falling from 0 to 1. An entry is active while
    percent_to_sigma(end) <= sigma <= percent_to_sigma(start); the borders lie halfway between neighbours, and the
    first and the last window reach to the ends.
    Raises ValueError for levels that do not fall, or that the model's percent cannot tell apart.
    """
    if any(following >= sigma for sigma, following in zip(sigmas[:-1], sigmas[1:])):
        raise ValueError("Inversion: the noise levels of this schedule do not fall at every step; take fewer steps.")
    levels = list(sigmas[:-1])
    percents = [percent_of(sigma, percent_to_sigma) for sigma in levels]
    borders = [0.0, *((one + other) / 2 for one, other in zip(percents[:-1], percents[1:])), 1.0]
    found = list(zip(borders[:-1], borders[1:]))
    for level, sigma in enumerate(levels):
        active = [i for i, (start, end) in enumerate(found) if _contains(start, end, sigma, percent_to_sigma)]
        if active != [level]:
            raise ValueError(
                f"Inversion: step {level + 1} of {len(levels)}, noise level {sigma:.4g}, cannot be told from its "
                "neighbours by the model's percent of sampling; take fewer steps, or another scheduler."
            )
    return found


def _contains(start: float, end: float, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
    return percent_to_sigma(end) <= sigma <= percent_to_sigma(start)
