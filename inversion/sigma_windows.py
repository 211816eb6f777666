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
    level = first_misplaced(found, sigmas, percent_to_sigma)
    if level is not None:
        raise ValueError(
            f"Inversion: step {level + 1} of {len(levels)}, noise level {levels[level]:.4g}, cannot be told from its "
            "neighbours by the model's percent of sampling; take fewer steps, or another scheduler."
        )
    return found


def first_misplaced(
    found: Sequence[tuple[float, float]], sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]
) -> int | None:
    """The first level, but for the last, at which its own window of `found` is not the only one that is active.

    None if each is. sigmas: (n + 1,). found: n windows of percent.
    """
    bounds = [(percent_to_sigma(end), percent_to_sigma(start)) for start, end in found]
    for level, sigma in enumerate(sigmas[:-1]):
        if [i for i, (low, high) in enumerate(bounds) if low <= sigma <= high] != [level]:
            return level
    return None
