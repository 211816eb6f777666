"""ComfyUI's CONDITIONING as an inversion uses it: one prompt for all images or one each, active at one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sliders.gate import percent_of

Windows = Sequence[tuple[float, float]]  # (start_percent, end_percent)

# Options that restrict a prompt to a part of the image or of sampling, or attach something to it. An inversion asks
# the model for the prompt alone, and would not be undone by sampling with these.
_PARTIAL = (
    *("area", "mask", "set_area_to_bounds", "gligen", "control", "hooks", "default"),
    "unclip_conditioning",  # ComfyUI adds other noise to it in every run
    *("start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end"),
)


def single_entry(conditioning: Sequence[Any], name: str) -> tuple[Tensor, dict[str, Any]]:
    """Returns the only entry of a CONDITIONING: (encoding, options). name: of the node's input, for messages.

    Raises ValueError for several entries, for one that acts in a part of the image or of sampling only, and for
    numbers that are not finite.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"Inversion: {name} must be one prompt; got {len(conditioning)} combined. Wire in one encoded prompt."
        )
    encoding, options = conditioning[0]
    if partial := [key for key in _PARTIAL if options.get(key) is not None]:
        raise ValueError(
            f"Inversion: {name} has {', '.join(partial)}; an inversion takes plain prompts, without regions, parts "
            "of sampling, ControlNets, hooks and unCLIP's images. Add them after it."
        )
    if not isinstance(encoding, Tensor):
        raise ValueError(f"Inversion: {name} holds no encoded prompt.")
    for part, value in {"the encoding": encoding, **options}.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"Inversion: {part} of {name} holds numbers that are not finite (NaN or infinite).")
    return encoding, dict(options)


def check_batch_size(encoding: Tensor, images: int, name: str) -> None:
    """Raises ValueError unless the encoding (B, tokens, width) has one entry for all images or one for each."""
    if len(encoding) not in (1, images):
        raise ValueError(
            f"Inversion: {name} has {len(encoding)} prompts for {images} images; one for all or one each will do."
        )


def select_images(conditioning: Sequence[Any], images: Tensor, batch_size: int) -> list[Any]:
    """Returns the CONDITIONING for some images of a batch: tensors with an entry for each image are indexed.

    images: (n,) indices into the batch, which may repeat.
    """
    return [
        [_indexed(encoding, images, batch_size), select_options(options, images, batch_size)]
        for encoding, options in conditioning
    ]


def select_options(options: Mapping[str, Any], images: Tensor, batch_size: int) -> dict[str, Any]:
    """Returns the options of one entry for some images of a batch, as `select_images` does."""
    return {name: _indexed(value, images, batch_size) for name, value in options.items()}


def _indexed(value: Any, images: Tensor, batch_size: int) -> Any:
    per_image = isinstance(value, Tensor) and value.ndim > 1 and batch_size > 1 and len(value) == batch_size
    return value[images.to(value.device)] if per_image else value


def percent_windows(sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]) -> list[tuple[float, float]]:
    """Returns (start_percent, end_percent) for each sigma but the last, so that only its own window is active at it.

    sigmas: (n + 1,), falling. percent_to_sigma: the model's, falling from 0 to 1. ComfyUI has an entry active while
    percent_to_sigma(end) <= sigma <= percent_to_sigma(start). The borders lie halfway between neighbours; the first
    and the last window reach to 0 and 1.
    Raises ValueError for sigmas that do not fall, or that the model's percent does not tell apart.
    """
    if any(next_sigma >= sigma for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:])):
        raise ValueError("Inversion: the sigmas of this schedule do not fall at every step; take fewer steps.")
    percents = [percent_of(sigma, percent_to_sigma) for sigma in sigmas[:-1]]
    borders = [0.0, *((one + other) / 2 for one, other in zip(percents[:-1], percents[1:])), 1.0]
    windows = list(zip(borders[:-1], borders[1:]))
    step = first_misplaced(windows, sigmas, percent_to_sigma)
    if step is not None:
        raise ValueError(
            f"Inversion: step {step + 1} of {len(windows)}, at sigma {sigmas[step]:.4g}, cannot be told from its "
            "neighbours by the model's percent of sampling; take fewer steps, or another scheduler."
        )
    return windows


def first_misplaced(
    windows: Windows, sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]
) -> int | None:
    """Returns the first step at whose sigma not exactly its own window is active, or None.

    windows: of n steps. sigmas: (n + 1,), of which the last belongs to no step.
    """
    bounds = [(percent_to_sigma(end), percent_to_sigma(start)) for start, end in windows]
    for step, sigma in enumerate(sigmas[:-1]):
        if [i for i, (low, high) in enumerate(bounds) if low <= sigma <= high] != [step]:
            return step
    return None
