"""Attention that gradients pass through, whatever kernel the host or a node has chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .errors import is_out_of_memory

log = logging.getLogger(__name__)

OVERRIDE = "optimized_attention_override"  # the host's option for a function that is called in attention's place
# The host's functions whose kernels have no backward pass: gradients would end there without a word, or with an error
_FORWARD_ONLY = ("attention_sage", "attention3_sage", "attention_flash")

Function = Callable[..., Tensor]


class LearningAttention:
    """What to hand to the host as `OVERRIDE`, for all that a run asks of its model.

    Where gradients pass it is torch's attention, which keeps no table of all queries by all keys for them; elsewhere
    the host's own. Functions that have no backward pass, the host's or a node's, give way to torch's everywhere:
    targets and predictions are to be of one model. A node's function that has one stays.
    """

    def __init__(self, options: Mapping[str, Any]):
        """options: the host's transformer options, with what nodes have put there."""
        self._chosen: Function | None = options.get(OVERRIDE)
        self._tried = False

    def __call__(self, usual: Function, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the host's functions: q, k, v of shape (B, T, heads * D), or as `args` and `kwargs` say."""
        if usual.__name__ in _FORWARD_ONLY:
            usual = attention_pytorch
        if self._chosen is not None and not self._tried:
            self._try(usual, q, k, v, args, kwargs)
        if self._chosen is not None:
            return self._chosen(usual, q, k, v, *args, **kwargs)
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        return (attention_pytorch if learns else usual)(q, k, v, *args, **kwargs)

    def _try(self, usual: Function, q: Tensor, k: Tensor, v: Tensor, args: tuple, kwargs: dict) -> None:
        """Give up the node's function if gradients do not come back from it, with what it is given first."""
        with torch.inference_mode(False), torch.enable_grad():
            given = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
            try:
                out = self._chosen(usual, *given, *args, **kwargs)
                came = out.requires_grad and torch.autograd.grad(out.sum(), given, allow_unused=True)
                learns = bool(came) and all(gradient is not None for gradient in came)
            except RuntimeError as error:  # as torch raises it for kernels that it cannot follow
                if is_out_of_memory(error):
                    raise
                learns = False
        self._tried = True
        if not learns:
            self._chosen = None
            log.warning("The attention that a node has put into the model has no backward pass; torch's is used")
