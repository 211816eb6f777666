"""Attention that gradients pass through, whatever kernel the host or a node has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

OVERRIDE = "optimized_attention_override"  # the host's option for a function that is called in attention's place
# The host's functions whose kernels have no backward pass: gradients would end there without a word, or with an error
_FORWARD_ONLY = ("attention_sage", "attention3_sage", "attention_flash")

Attention = Callable[..., Tensor]


def with_gradient(options: Mapping[str, Any]) -> Attention:
    """What to hand to the host as `OVERRIDE`: its own attention, or the one that `options` ask for, unless it has no
    backward pass; then torch's.
    """
    chosen = options.get(OVERRIDE)

    def attention(usual: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if chosen is not None:
            out = chosen(usual, q, k, v, *args, **kwargs)
            learns = q.requires_grad or k.requires_grad or v.requires_grad
            if out.requires_grad or not learns:
                return out
        elif usual.__name__ not in _FORWARD_ONLY:
            return usual(q, k, v, *args, **kwargs)
        return attention_pytorch(q, k, v, *args, **kwargs)

    return attention
