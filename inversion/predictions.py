"""What an inversion asks of a model: d(x, sigma) of the prompt, and of a negative embedding that is being fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.denoiser import Denoiser
from ..comfy_host.identity import is_flow
from .null_text import Embedding
from .prompts import rows_of


class Predictions:
    """The model for some images of a batch.

    positive: CONDITIONING of the prompt. options: of the negative's entry, beside its embedding. Both of one row, or
    of a row for each image. rows: (n,), the images' numbers in the batch of `of`.
    """

    def __init__(self, denoiser: Denoiser, positive: list, options: Mapping[str, Any], rows: Tensor, of: int):
        self.denoiser, self.options, self.rows, self.of = denoiser, options, rows, of
        self._positive, self._prompt = rows_of(positive, rows, of), None

    @torch.no_grad()
    def prompt(self, x: Tensor, sigma: Tensor) -> Tensor:
        """d(x, sigma) of the prompt: (n, C, ...) -> (n, C, ...)."""
        if self._prompt is None:
            self._prompt = self.denoiser.conditions(self._positive, x)
        return self.denoiser.evaluate(x, sigma, [self._prompt])[0]

    def negative(self, x: Tensor, sigma: Tensor, embedding: Embedding, rows: Tensor) -> Tensor:
        """d(x, sigma) of the negative. rows: (m,), which of this object's rows x and the embedding are of.

        embedding: the encoding (m, tokens, width), and the pooled one (m, width) where that is fitted too.
        """
        (_, options), *_ = rows_of([[embedding[0], self.options]], self.rows[rows.to(self.rows.device)], self.of)
        if len(embedding) > 1:
            options["pooled_output"] = embedding[1]
        negative = [[embedding[0], {**options, "prompt_type": "negative"}]]
        return self.denoiser.evaluate(x, sigma, [self.denoiser.conditions(negative, x)])[0]

    def loss_scale(self, sigma: Tensor) -> float:
        """What squares of latents at a noise level are divided by, to be of the clean latents' size.

        The published losses are of DDIM's latents, which are the host's divided by sqrt(1 + sigma^2); a flow
        model's latents keep their size by themselves.
        """
        flow = is_flow(self.denoiser.sampling)
        return 1.0 if flow else 1 + float(sigma) ** 2
