"""Less memory for more work: a model's blocks keep nothing but their inputs, and run again in backward.

"Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Within the block the model's blocks are run again in backward, which belongs inside as well."""
    blocks = list(_blocks(model))
    own = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = _again(block.forward)
        yield
    finally:
        for block, forward in own:
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with layers of their own that stand in a list: a transformer's blocks, a UNet's."""
    for child in module.children():
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(
            child, (nn.ModuleList, nn.Sequential)
        )
        if listed and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # What the model writes to its options later is not what the block saw
        args, kwargs = _kept(args, dict), _kept(kwargs, dict)
        return checkpoint(_on_copies, forward, args, kwargs, use_reentrant=False, preserve_rng_state=False)

    return run


def _on_copies(forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Blocks add to their inputs in place; what they were given must still be there when they run again."""
    return forward(*_kept(args, Tensor), **_kept(kwargs, Tensor))


def _kept(values: Any, kind: type) -> Any:
    """Arguments with those of a kind copied: dictionaries one level deep, and tensors."""
    if isinstance(values, tuple):
        return tuple(_kept(value, kind) for value in values)
    if kind is Tensor:
        if isinstance(values, dict):
            return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}
        return values.clone() if isinstance(values, Tensor) else values
    return dict(values) if isinstance(values, dict) else values
