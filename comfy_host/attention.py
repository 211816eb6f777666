"""Attention that gradients pass through, whatever kernel ComfyUI or a node has chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .errors import is_out_of_memory

log = logging.getLogger(__name__)
OVERRIDE = "optimized_attention_override"  # ComfyUI's option: a function that is called in place of attention
# ComfyUI's functions whose kernels have no backward pass: gradients end there, silently or with an error
_FORWARD_ONLY = ("attention_sage", "attention3_sage", "attention_flash")

Function = Callable[..., Tensor]


class LearningAttention:
    """Attention for everything that a training run or an inversion asks of its model; goes into `OVERRIDE`.

    Where gradients pass it is torch's, which stores no table of all queries by all keys for them; elsewhere it is
    ComfyUI's. A function without a backward pass, ComfyUI's or a node's, is replaced by torch's everywhere: targets
    and predictions have to come from one model. A node's function that has a backward pass stays.
    """

    def __init__(self, options: Mapping[str, Any]):
        """options: ComfyUI's transformer options, with what nodes have put there."""
        self._chosen: Function | None = options.get(OVERRIDE)
        self._tried = False
        self.problem = ""  # why a node's function is not used, for the user

    def __call__(self, usual: Function, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute attention as ComfyUI's functions do: q, k, v (B, T, heads * D), or as `args` and `kwargs` say."""
        if usual.__name__ in _FORWARD_ONLY:
            usual = attention_pytorch
        if self._chosen is not None and not self._tried:
            self._try(self._chosen, usual, q, k, v, args, kwargs)
        if self._chosen is not None:
            return self._chosen(usual, q, k, v, *args, **kwargs)
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        return (attention_pytorch if learns else usual)(q, k, v, *args, **kwargs)

    def _try(
        self, chosen: Function, usual: Function, q: Tensor, k: Tensor, v: Tensor, args: tuple, kwargs: dict
    ) -> None:
        """Drop the node's function if no gradients come back from it, tried with its first inputs."""
        with torch.inference_mode(False), torch.enable_grad():
            given = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
            try:
                out = chosen(usual, *given, *args, **kwargs)
                came = torch.autograd.grad(out.sum(), given, allow_unused=True) if out.requires_grad else [None]
                learns = all(gradient is not None for gradient in came)
            except RuntimeError as error:  # as torch raises it for kernels that it cannot follow
                if is_out_of_memory(error):
                    raise
                learns = False
        self._tried = True
        if not learns:
            self._chosen = None
            self.problem = (
                "The attention that a node has put into the model has no backward pass, so nothing can be learned "
                "through it: torch's was used. What is sampled with the node's may differ a little."
            )
            log.warning(self.problem)
