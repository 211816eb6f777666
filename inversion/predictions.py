"""The host's model as an inversion asks it: d(x, sigma) of the prompt, and of a negative embedding to be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.denoiser import Denoiser
from ..comfy_host.prediction import is_flow
from .null_text import Embedding
from .prompt_entries import rows_of

_PROMPT, _NEGATIVE = "prompt", "negative"  # the denoiser's names for the two


class Asked:
    """The model for some rows of a batch.

    positive: CONDITIONING of the prompt. options: of the negative's entry, beside its embedding. Both of one row, or
    of a row for each picture. rows: (n,), the pictures' numbers in the batch of `of`.
    """

    def __init__(self, denoiser: Denoiser, positive: list, options: Mapping[str, Any], rows: Tensor, of: int):
        self.denoiser, self.options, self.rows, self.of = denoiser, options, rows, of
        denoiser.put(_PROMPT, rows_of(positive, rows, of))

    @torch.no_grad()
    def prompt(self, x: Tensor, sigma: Tensor) -> Tensor:
        """d(x, sigma) of the prompt: (n, C, ...) -> (n, C, ...)."""
        return self.denoiser(x, sigma, [_PROMPT])[0]

    def negative(self, x: Tensor, sigma: Tensor, embedding: Embedding, rows: Tensor) -> Tensor:
        """d(x, sigma) of the negative. rows: (m,), which of this object's rows x and the embedding are of.

        embedding: the encoding (m, tokens, width), and the pooled one (m, width) where that is fitted too.
        """
        (_, options), *_ = rows_of([[embedding[0], self.options]], self.rows[rows.to(self.rows.device)], self.of)
        if len(embedding) > 1:
            options["pooled_output"] = embedding[1]
        self.denoiser.put(_NEGATIVE, [[embedding[0], {**options, "prompt_type": "negative"}]])
        return self.denoiser(x, sigma, [_NEGATIVE])[0]

    def loss_scale(self, sigma: Tensor) -> float:
        """What squares of latents at a noise level are divided by, to be of the clean latents' size.

        The published losses are of DDIM's latents, which are the host's divided by sqrt(1 + sigma^2); a flow
        model's latents keep their size by themselves.
        """
        flow = is_flow(self.denoiser.sampling)
        return 1.0 if flow else 1 + float(sigma) ** 2
