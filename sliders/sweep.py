"""A sweep's strengths from text, and a latent with the same noise in all batch entries of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch

MOST_VALUES = 64


def parse_values(text: str) -> list[float]:
    """Read strengths from "-3, 0, 3" or "-3:3:7" (from, to, count).

    Raises ValueError for anything else, for none, and for more than 64.
    """
    text = text.strip()
    try:
        if ":" in text:
            low, high, count = text.split(":")
            values = torch.linspace(float(low), float(high), int(count), dtype=torch.float64).tolist()
        else:
            values = [float(part) for part in text.replace(",", " ").split()]
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"Sweep values must be numbers separated by commas, or from:to:count such as -3:3:7; got {text!r}."
        ) from error
    if not 1 <= len(values) <= MOST_VALUES or not all(isfinite(v) for v in values):
        raise ValueError(f"A sweep takes 1 to {MOST_VALUES} finite values; got {len(values)} from {text!r}.")
    return values


def swept_latent(latent: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Repeat every entry of a LATENT `count` times: (n, C, ...) -> (n * count, C, ...), copies side by side.

    Its `batch_index` makes ComfyUI draw the same noise for the copies of an entry (`comfy.sample.prepare_noise`).
    """
    samples = latent["samples"]
    index = latent.get("batch_index", list(range(samples.shape[0])))
    swept = {**latent, "samples": samples.repeat_interleave(count, dim=0)}
    swept["batch_index"] = [i for i in index for _ in range(count)]
    if (mask := latent.get("noise_mask")) is not None and mask.shape[0] == samples.shape[0]:
        swept["noise_mask"] = mask.repeat_interleave(count, dim=0)
    return swept
