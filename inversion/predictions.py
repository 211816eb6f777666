"""What an inversion asks of a predictor: d(x, sigma) of the prompt and of a negative embedding, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.autograd import differentiable
from ..comfy_host.errors import is_out_of_memory
from ..comfy_host.gradient_checkpointing import checkpointed
from ..comfy_host.memory import free_unused
from ..comfy_host.predictor import DiffusionPredictor, classifier_free
from ..comfy_host.refetched_weights import refetched
from .null_text import Embedding
from .prompts import select_images


class Predictions:
    """Evaluates a predictor for some images of a batch.

    positive: CONDITIONING of the prompt. options: of the negative's entry, beside its embedding. Tensors in both are
    for all images or have an entry for each. images: (n,) indices into the batch.
    """

    def __init__(
        self,
        predictor: DiffusionPredictor,
        positive: list[Any],
        options: Mapping[str, Any],
        images: Tensor,
        batch_size: int,
    ) -> None:
        self._predictor, self._options, self._images, self._batch_size = predictor, options, images, batch_size
        self._positive = select_images(positive, images, batch_size)
        self._cond: dict[str, Any] | None = None  # what the model makes of the prompt, once it was asked

    @torch.no_grad()
    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns d(x, sigma) of the prompt: (n, C, ...) -> (n, C, ...)."""
        if self._cond is None:
            self._cond = self._predictor.conditions(self._positive, x)
        return self._predictor.evaluate(x, sigma, [self._cond])[0]

    def uncond(self, x: Tensor, sigma: Tensor, embedding: Embedding, chosen: Tensor) -> Tensor:
        """Returns d(x, sigma) of the negative, with gradients: (m, C, ...) -> (m, C, ...).

        chosen: (m,), which of these n images x and the embedding are of.
        embedding: the encoding (m, tokens, width), and the pooled one (m, width) where that is optimised, too.
        """
        encoding, *pooled = embedding
        images = self._images[chosen.to(self._images.device)]
        ((_, options),) = select_images([[encoding, self._options]], images, self._batch_size)
        options |= {"prompt_type": "negative"}
        if pooled:
            options["pooled_output"] = pooled[0]
        conditions = self._predictor.conditions([[encoding, options]], x)
        return self._predictor.evaluate(x, sigma, [conditions])[0]

    @torch.no_grad()
    def guided(self, x: Tensor, sigma: Tensor, d_cond: Tensor, embedding: Embedding, guidance: float) -> Tensor:
        """Returns d(x, sigma) under classifier-free guidance, given that of the prompt: all (n, C, ...)."""
        all_images = torch.arange(len(x), device=x.device)
        return classifier_free(d_cond, self.uncond(x, sigma, embedding, all_images), guidance)


class Gradients:
    """Gives gradients through a model by the cheapest means that works; what works is found by trying.

    checkpointing: gradient checkpointing, for less memory. careful: see `autograd.differentiable`.
    note: is told, for the user, what had to be given up.
    """

    def __init__(self, predictor: DiffusionPredictor, note: Callable[[str], None]) -> None:
        self._predictor, self._note = predictor, note
        self.checkpointing = self.careful = False

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Forward and backward passes within the block have gradients."""
        with ExitStack() as during:
            during.enter_context(differentiable(self.careful))
            during.enter_context(refetched(self._predictor.model))
            if self.checkpointing:
                during.enter_context(checkpointed(self._predictor.network))
            yield

    def fall_back(self, error: RuntimeError, images: int) -> None:
        """Chooses what to try after an error with so many images; raises the error if there is nothing left."""
        if not is_out_of_memory(error):
            if self.careful:
                raise error
            self.careful = True
            return
        if images > 1 or self.checkpointing:  # fewer images at once come first, which is the caller's part
            raise error
        self.checkpointing = True
        free_unused()
        self._note("there is little memory; going on with gradient checkpointing, which is slower")
