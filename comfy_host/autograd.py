"""Gradients through ComfyUI's models, whose code is written for inference.

Three things prevent it. Fused rotary embeddings have no gradient: ComfyUI leaves most of them out while its
flag `in_training` is set, and the rest have plain forms in the library they come from. Blocks add to their inputs in
place, which autograd may have kept: copies are kept of what is overwritten, see `saved_tensors`. And weights loaded
in inference mode may not be kept at all: see `borrow.Loan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
from torch.overrides import TorchFunctionMode

from .saved_tensors import overwriting_saved_tensors

try:
    import comfy_kitchen.backends.eager.rope as plain_rotary
except ImportError:  # a ComfyUI without fused operations has nothing to replace
    plain_rotary = None

_FUSED = "comfy_kitchen::"


@contextmanager
def differentiable(carefully: bool = True) -> Iterator[None]:
    """Give forward and backward passes within the block gradients; nothing is changed after it.

    carefully: use plain rotary embeddings, and copy what is overwritten in place. Both cost a little for every
    operation, and many models need neither; those that do raise RuntimeError in backward without them.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with ExitStack() as during:
            if carefully:
                during.enter_context(overwriting_saved_tensors())
                during.enter_context(PlainRotary())
            yield
    finally:
        comfy.model_management.in_training = before


class PlainRotary(TorchFunctionMode):
    """Replaces fused rotary embeddings by their plain form, which autograd can follow."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "_qualified_op_name", "")
        if name.startswith(_FUSED):
            func = getattr(plain_rotary, name.removeprefix(_FUSED), func)
        return func(*args, **(kwargs or {}))
