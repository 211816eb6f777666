"""Attention that gradients pass through, whatever kernel the host or a node has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

OVERRIDE = "optimized_attention_override"  # the host's option for a function that is called in attention's place
# The host's functions whose kernels have no backward pass: gradients would end there without a word, or with an error
_FORWARD_ONLY = ("attention_sage", "attention3_sage", "attention_flash")

Attention = Callable[..., Tensor]


def with_gradient(options: Mapping[str, Any]) -> Attention:
    """What to hand to the host as `OVERRIDE`: where gradients pass, torch's attention, which keeps no table of all
    queries by all keys for them; elsewhere the host's own. One of a node's, in `options`, stays if it has a backward
    pass.
    """
    chosen = options.get(OVERRIDE)

    def attention(usual: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        if chosen is not None:
            out = chosen(usual, q, k, v, *args, **kwargs)
            if out.requires_grad or not learns:
                return out
        elif not learns and usual.__name__ not in _FORWARD_ONLY:
            return usual(q, k, v, *args, **kwargs)
        return attention_pytorch(q, k, v, *args, **kwargs)

    return attention
