"""The host's CONDITIONING, row by row: a batch of pictures may bring a prompt for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
