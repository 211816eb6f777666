"""Gradients through the host's models, whose code is written for inference.

Three things stand in the way. Fused rotary embeddings have no gradient: the host leaves most of them out while its
flag `in_training` is set, and the rest have plain forms in the library they come from. Blocks add to their inputs in
place, which autograd may have kept: torch then keeps copies of what is overwritten. And weights loaded in inference
mode may not be kept at all: see `borrow.Loan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

try:
    import comfy_kitchen.backends.eager.rope as plain_rotary
except ImportError:  # a host without fused operations has nothing to replace
    plain_rotary = None

_FUSED = "comfy_kitchen::"


@contextmanager
def differentiable(carefully: bool = True) -> Iterator[None]:
    """Forward and backward passes within the block have gradients; nothing is changed after it.

    carefully: with plain rotary embeddings and copies of what is overwritten. Both cost a little for every operation,
    and many models need neither; those that do raise RuntimeError in backward without.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with ExitStack() as during:
            if carefully:
                during.enter_context(allow_mutation_on_saved_tensors())
                during.enter_context(PlainRotary())
            yield
    finally:
        comfy.model_management.in_training = before


class PlainRotary(TorchFunctionMode):
    """Takes the plain form of a fused rotary embedding, which autograd can follow, in its place."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "_qualified_op_name", "")
        if name.startswith(_FUSED):
            func = getattr(plain_rotary, name.removeprefix(_FUSED), func)
        return func(*args, **(kwargs or {}))
