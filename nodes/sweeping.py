"""What a sweep needs beside the stack: its values from text, and a latent with equal noise in its rows."""

from math import isfinite

import torch

MOST_VALUES = 64


def parse_values(text: str) -> list[float]:
    """Strengths from "-3, 0, 3" or "-3:3:7" (from, to, count).

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


def swept_latent(latent: dict, count: int) -> dict:
    """The latent with every entry repeated `count` times in a row: (n, C, ...) -> (n * count, C, ...).

    `batch_index` makes the host draw the same noise for the copies of an entry (`comfy.sample.prepare_noise`).
    """
    samples = latent["samples"]
    index = latent.get("batch_index", list(range(samples.shape[0])))
    swept = {**latent, "samples": samples.repeat_interleave(count, dim=0)}
    swept["batch_index"] = [i for i in index for _ in range(count)]
    if (mask := latent.get("noise_mask")) is not None and mask.shape[0] == samples.shape[0]:
        swept["noise_mask"] = mask.repeat_interleave(count, dim=0)
    return swept
