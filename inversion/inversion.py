"""The result of an inversion: a noise latent and the negative embeddings that lead from it to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .settings import InversionSettings

_SAME_LATENT = 1e-2  # two latents are one if they differ by less than this share of their size


@dataclass(frozen=True, eq=False)
class Inversion:
    """Holds the result for B images, all tensors float32 on the CPU.

    noise, clean: (B, C, ...) latents at the first and at the last sigma, in the scale of ComfyUI's LATENT.
    sigmas: (n + 1,), falling to 0.
    embeddings: (n, B or 1, tokens, width) of the negative, or (1, ...) if all steps share them.
    pooled: (n, B or 1, width), or None where it is not optimised and stands among the options.
    options: all else that the negative CONDITIONING says. positive: the prompt, (encoding, options).
    windows: (start_percent, end_percent) of each step.
    done: steps that were made, and whose embedding was found; fewer than n if the run was cancelled.
    losses: (first, last) of every step done, the mean over the images; empty if nothing was optimised.
    error: (B,) distance of the reconstructed latents from `clean`, as a share of their size; NaN if not known.
    notes: what the run had to do without, for the user; not kept in files.
    family, weights_hash: of the model. prediction: what its network predicts, such as "EPS".
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
    weights_hash: str
    prediction: str
    done: int
    losses: tuple[tuple[float, float], ...]
    error: Tensor
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.noise)

    @property
    def steps(self) -> int:
        """Number of steps of sampling."""
        return len(self.sigmas) - 1

    @property
    def distinct(self) -> int:
        """Number of embeddings that differ: one for each step, or one for all."""
        return max(len(self.embeddings), len(self.pooled) if self.pooled is not None else 1)

    def entry(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Returns the entry of the negative CONDITIONING for a step, (encoding, options), without its window."""
        options = dict(self.options)
        if self.pooled is not None:
            options["pooled_output"] = self.pooled[step % len(self.pooled)]
        return self.embeddings[step % len(self.embeddings)], options

    def match_images(self, noise: Tensor) -> Tensor | None:
        """Returns the index of the image that each entry of a noise latent is of; None if one is of no image.

        noise: (n, C, ...), in the same scale. It may have gone through files and half precision. The result is (n,).
        """
        if noise.shape[1:] != self.noise.shape[1:]:
            return None
        given, own = (rearrange(each.float().cpu(), "b ... -> b (...)") for each in (noise, self.noise))
        distances = torch.stack([(given - one).norm(dim=1) for one in own], dim=1)  # (n, B)
        nearest, images = distances.min(dim=1)
        close = nearest <= _SAME_LATENT * own.norm(dim=1)[images]
        return images if bool(close.all()) else None

    def facts(self) -> list[str]:
        """Returns lines for the user: what was inverted, how, and how near the reconstruction comes."""
        settings = self.settings
        count = "1 image" if self.images == 1 else f"{self.images} images"
        return [
            f"{count}, {settings.method}, {self.steps} steps of {settings.scheduler}, cfg {settings.cfg:g}",
            "reconstruction error, as a share of the latents' size: " + _percentages(self.error),
        ]

    def warnings(self) -> list[str]:
        """Returns lines for the user: what the run did without, and why the image may be reproduced less exactly."""
        settings, lines = self.settings, list(self.notes)
        if self.done < self.steps:
            what_follows = (
                "the later ones use the last embedding found, so the image is reproduced less exactly."
                if settings.optimises
                else "nothing is missing but how near it comes."
            )
            lines.append(f"Cancelled after {self.done} of {self.steps} steps: {what_follows}")
        if settings.method == "plain" and settings.cfg != 1:
            lines.append("Guidance leads away from a plain inversion: sample it at a cfg of 1.")
        return lines

    def report(self) -> str:
        """Returns a text for the user: the facts, the warnings, and the losses of every step."""
        losses = [
            f"step {number}: loss {first:.3g} to {last:.3g}"
            for number, (first, last) in enumerate(self.losses, start=1)
        ]
        return "\n".join([*self.facts(), *self.warnings(), *losses])


def _percentages(shares: Tensor) -> str:
    texts = ["not known" if share != share else f"{100 * share:.3g} %" for share in shares.tolist()]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
