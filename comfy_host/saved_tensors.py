"""Copies of what autograd has kept for backward, made when something is about to be overwritten in place.

PyTorch's own `allow_mutation_on_saved_tensors` does the same, but knows tensors by their addresses: one that takes
the place of a tensor that was overwritten and freed is given the old numbers in backward, and now and then gradients
are wrong without a word (seen with PyTorch 2.13).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def overwriting_saved_tensors() -> Iterator[None]:
    """Let operations overwrite what was kept for backward within the block; gradients are of the old numbers."""
    copying = _CopiesBeforeWriting()
    with saved_tensors_hooks(copying.keep, _Kept.numbers), copying:
        yield


class _Kept:
    """A tensor that autograd has kept. It lives as long as autograd needs it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def numbers(self) -> Tensor:
        return self.tensor


class _CopiesBeforeWriting(TorchDispatchMode):
    """Copies what is kept of a storage before an operation writes into it; the copy is nobody else's."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: defaultdict[int, WeakSet[_Kept]] = defaultdict(WeakSet)  # by their storage, which they hold

    def keep(self, tensor: Tensor) -> _Kept:
        """Autograd's hook for a tensor that it keeps."""
        kept = _Kept(tensor)
        self._kept[_storage(tensor)].add(kept)
        return kept

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for written in _written(func, args, kwargs or {}):
            self._copy(written)
        return func(*args, **(kwargs or {}))

    def _copy(self, written: Tensor) -> None:
        copies: dict[tuple[object, ...], Tensor] = {}  # one for all that see the same numbers
        for kept in self._kept.pop(_storage(written), ()):
            tensor = kept.tensor
            view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad
            if view not in copies:
                copies[view] = tensor.clone()
            kept.tensor = copies[view]


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if argument.is_out or place >= len(args) else args[place]
            yield from (t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
