"""The host's CONDITIONING, row by row: a batch of pictures may bring a prompt for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sliders.gate import percent_of

# What an entry may say beside its words that concerns a part of the picture, or what is attached to the prompt.
# An inversion asks the model for the prompt alone, and would not be undone by sampling with these.
_PARTIAL = (
    *("area", "mask", "set_area_to_bounds", "gligen", "control", "hooks", "default"),
    "unclip_conditioning",  # the host adds other noise to it in every run
    *("start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end"),
)


def single_entry(conditioning: Sequence, name: str) -> tuple[Tensor, dict[str, Any]]:
    """The one entry of a CONDITIONING: (encoding, options). name: of the input, for messages.

    Raises ValueError for several entries, and for one that counts in a part of the picture or of sampling only.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"Inversion: {name} must be one prompt; got {len(conditioning)} combined. Wire in one encoded prompt."
        )
    encoding, options = conditioning[0]
    if partial := [key for key in _PARTIAL if options.get(key) is not None]:
        raise ValueError(
            f"Inversion: {name} has {', '.join(partial)}; an inversion takes plain prompts, without regions, parts "
            "of sampling, ControlNets, hooks and unCLIP's pictures. Add them after it."
        )
    if not isinstance(encoding, Tensor):
        raise ValueError(f"Inversion: {name} holds no encoded prompt.")
    for part, value in {"the encoding": encoding, **options}.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"Inversion: {part} of {name} holds numbers that are not finite (NaN or infinite).")
    return encoding, dict(options)


def checked_rows(encoding: Tensor, pictures: int, name: str) -> None:
    """Raises ValueError unless a prompt is there for all pictures, or one for each."""
    if len(encoding) not in (1, pictures):
        raise ValueError(
            f"Inversion: {name} has {len(encoding)} prompts for {pictures} pictures; one for all or one each will do."
        )


def rows_of(conditioning: Sequence, rows: Tensor, of: int) -> list:
    """The CONDITIONING for some rows of a batch of `of`: tensors with a row for each are cut to those.

    rows: (n,) their numbers; they may repeat.
    """
    return [[_taken(encoding, rows, of), taken(options, rows, of)] for encoding, options in conditioning]


def taken(options: Mapping[str, Any], rows: Tensor, of: int) -> dict[str, Any]:
    """The same for the options of one entry."""
    return {name: _taken(value, rows, of) for name, value in options.items()}


def _taken(value: Any, rows: Tensor, of: int) -> Any:
    has_rows = isinstance(value, Tensor) and value.ndim > 1 and of > 1 and len(value) == of
    return value[rows.to(value.device)] if has_rows else value


def percent_windows(sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]) -> list[tuple[float, float]]:
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
