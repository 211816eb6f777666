"""What an inversion is: a noise latent and the negative embeddings that lead from it to the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .settings import InversionSettings

_SAME = 1e-2  # share of a latent's size within which two of them are one


@dataclass(frozen=True, eq=False)
class Inversion:
    """The result for B pictures, all tensors float32 on the CPU.

    noise, clean: (B, C, ...) latents at the first noise level and at none, in the host's scale of LATENT.
    sigmas: (n + 1,), falling to 0.
    embeddings: (n, B or 1, tokens, width), or (1, ...) if all steps share them.
    pooled: (n, B or 1, width), or None where it is not fitted and stands among the options.
    options: what else the negative CONDITIONING says. positive: the prompt it was inverted with, (encoding, options).
    windows: of percent, (start, end) for every step.
    done: steps that were made, and whose embedding was found; fewer than n if the run was cancelled.
    losses: for every step done, (first, last), the mean over the pictures.
    error: (B,) distance of the reconstructed latents from `clean`, as a share of their size; NaN if not known.
    family, fingerprint: of the model. prediction: what its network was taken to predict.
    """

    noise: Tensor
    clean: Tensor
    sigmas: Tensor
    embeddings: Tensor
    pooled: Tensor | None
    options: Mapping[str, Any]
    positive: tuple[Tensor, Mapping[str, Any]]
    windows: tuple[tuple[float, float], ...]
    settings: InversionSettings
    family: str
    fingerprint: str
    prediction: str
    done: int
    losses: tuple[tuple[float, float], ...]
    error: Tensor

    @property
    def pictures(self) -> int:
        return len(self.noise)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def entry(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """(encoding, options) of the host's CONDITIONING for one step, without its window."""
        options = dict(self.options)
        if self.pooled is not None:
            options["pooled_output"] = self.pooled[step % len(self.pooled)]
        return self.embeddings[step % len(self.embeddings)], options

    @property
    def distinct(self) -> int:
        """Embeddings that differ: one for each step, or one for all."""
        return max(len(self.embeddings), len(self.pooled) if self.pooled is not None else 1)

    def rows_like(self, noise: Tensor) -> Tensor | None:
        """Which picture each row of a latent belongs to, (rows,); None if there is a row of none of them.

        noise: (rows, C, ...), in the same scale. It may have gone through files and half precision.
        """
        if noise.shape[1:] != self.noise.shape[1:]:
            return None
        given, own = noise.flatten(1).float().cpu(), self.noise.flatten(1)
        apart = torch.stack([(given - one).norm(dim=1) for one in own], dim=1)  # (rows, B)
        nearest, rows = apart.min(dim=1)
        close = nearest <= _SAME * own.norm(dim=1)[rows]
        return rows if bool(close.all()) else None

    def report(self) -> str:
        """What to tell of it, in a few lines."""
        settings, lines = self.settings, []
        count = "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"
        lines.append(f"{count}, {settings.method}, {self.steps} steps of {settings.scheduler}, cfg {settings.cfg:g}")
        if self.done < self.steps:
            fitted = settings.method == "null-text"
            what_follows = (
                "the later ones use the last embedding found, so the picture is reproduced less exactly."
                if fitted
                else "nothing is missing but how near it comes."
            )
            lines.append(f"Cancelled after {self.done} of {self.steps} steps: {what_follows}")
        if settings.method == "plain" and settings.cfg != 1:
            lines.append("Guidance leads away from a plain inversion: sample it at a cfg of 1.")
        lines.append("reconstruction error, as a share of the latents' size: " + _listed(self.error))
        lines += [
            f"step {number}: loss {first:.3g} to {last:.3g}"
            for number, (first, last) in enumerate(self.losses, start=1)
        ]
        return "\n".join(lines)


def _listed(shares: Tensor) -> str:
    texts = ["not known" if share != share else f"{100 * share:.3g} %" for share in shares.tolist()]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
