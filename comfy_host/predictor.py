"""What training and inversion ask of a model, whichever it is: a denoiser, a text encoder, or a toy in a test."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Predictor(Protocol):
    """A model that gives one prediction per prompt, through which gradients pass.

    device: where it computes. dtype: of its activations. at_once: the most batch entries that one evaluation takes,
    by its own limit or by the memory; None without a limit. The caller may lower it.
    """

    device: torch.device
    dtype: torch.dtype
    at_once: int | None

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Predict in one batch: x (B, C, ...), sigma a scalar -> (len(prompts), B, C, ...)."""
        ...

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        prompts: Sequence[str],
        layers: ActingLayers | None = None,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """Predict without gradients, in as many batches as memory asks for: (len(prompts), B, C, ...).

        layers, strengths: a slider that acts at strengths (len(prompts), B, 1); without them the model is frozen.
        """
        ...

    @property
    def model(self) -> nn.Module:
        """The whole module tree, with the layers that sliders act on."""
        ...

    @property
    def network(self) -> nn.Module:
        """The part of the tree that is made of blocks, for gradient checkpointing."""
        ...


class ActingLayers(Protocol):
    """A slider that is being trained: layers that act within a block."""

    def acting(self, strengths: Tensor) -> AbstractContextManager[None]:
        """Let them act at strengths (batch entries, 1)."""
        ...


class DiffusionPredictor(Predictor, Protocol):
    """A diffusion model, in the linear form d(x, sigma, prompt) = (x - denoised) / sigma."""

    def conditions(self, conditioning: list[Any], x: Tensor) -> dict[str, Any]:
        """Return what the model is given for one CONDITIONING beside latents x (B, C, ...).

        Gradients reach the tensors in it that require them.
        """
        ...

    def evaluate(self, x: Tensor, sigma: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor:
        """Predict under what `conditions` returned, in one batch: x (B, C, ...) -> (len(conditions), B, C, ...)."""
        ...

    def sigmas(self, steps: int, scheduler: str = "simple") -> Tensor:
        """Return the schedule's (steps + 1,) falling sigmas, ending at 0."""
        ...

    def scale_noise(self, sigma: Tensor, noise: Tensor, latents: Tensor | None = None) -> Tensor:
        """Return latents (B, C, ...) with noise at a sigma; without latents, the start of sampling."""
        ...

    def input_scale(self, sigma: Tensor) -> Tensor:
        """Return c_in(sigma), a scalar: what latents are multiplied by before the network reads them."""
        ...


def classifier_free(d_prompt: Tensor, d_empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) in the form d_empty + g (d_prompt - d_empty)."""
    return d_empty + guidance * (d_prompt - d_empty)
