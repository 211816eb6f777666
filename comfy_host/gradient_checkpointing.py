"""Gradient checkpointing: a model's blocks store nothing but their inputs, and run again in backward.

"Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. torch's own `checkpoint` keeps the tensors of the
second run as they are at its end; ComfyUI's blocks add to theirs in place, and gradients would silently be wrong.
Here they are stored as they were when autograd saved them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map

from .autograd import PlainRotary


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint the model's blocks within the block, in forward and in backward, which belongs inside as well."""
    blocks = list(blocks_of(model))
    own = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = _recomputing(block, block.forward)
        yield
    finally:
        for block, forward in own:
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Return the outermost modules with layers of their own that are in a list: a transformer's blocks, a UNet's."""
    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    for child in module.children():
        listed = isinstance(module, containers) and not isinstance(child, containers)
        if listed and any(True for _ in child.children()):
            yield child
        else:
            yield from blocks_of(child)


def _recomputing(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        second = _Recomputation(block, forward, args, kwargs)
        with saved_tensors_hooks(second.number, second.value):
            return second.forward(*second.inputs())

    return run


class _Recomputation:
    """The tensors that one run of a block saves for backward, known by their number until they are needed."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict):
        self.run = forward
        # dictionaries are copied: what the model writes to its options later is not what the block saw
        self.given = tree_map(lambda value: value, (args, kwargs))
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in block.parameters()}
        self.numbers = 0
        self.has_run_again = False
        self.values: dict[int, Tensor] = {}

    def forward(self, args: tuple, kwargs: dict) -> Any:
        with PlainRotary():  # modes are not kept in backward
            return self.run(*args, **kwargs)

    def inputs(self, detached: bool = False) -> tuple[tuple, dict]:
        """Return copies of what the block was given: it may add to them in place."""

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return (value.detach().requires_grad_(value.requires_grad) if detached else value).clone()

        return tree_map(copied, self.given)

    def number(self, tensor: Tensor) -> int:
        self.numbers += 1
        return self.numbers - 1

    def value(self, number: int) -> Tensor:
        """Return the tensor of that number, by running the block again at first. Each is asked for once."""
        if not self.has_run_again:
            self.has_run_again = True
            with torch.enable_grad(), saved_tensors_hooks(self._keep, _nothing):
                self.forward(*self.inputs(detached=True))
        return self.values.pop(number)

    def _keep(self, tensor: Tensor) -> None:
        is_weight = tensor.untyped_storage().data_ptr() in self.weights
        self.values[len(self.values)] = tensor.detach() if is_weight else tensor.detach().clone()


def _nothing(kept: None) -> Tensor:
    raise RuntimeError("The second run of a block has no backward of its own.")
