"""Measures the peak memory of a block of code: on CUDA by the allocator, elsewhere by following every storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows the storages that operations within it make, also those that autograd alone keeps, until they go.

    What was there before is not counted, nor what a single operation needs within itself. now, peak: in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}  # bytes by storage; 0 for those that were there before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage until it is freed; another one may have its address then."""
        if storage._cdata not in self._known:
            self._known[storage._cdata] = size
            self.now += size
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, storage: int) -> None:
        self.now -= self._known.pop(storage, 0)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            yield value.untyped_storage()
        elif isinstance(value, torch.UntypedStorage):  # of a tensor that is made on another's memory
            yield value


class Peak:
    """The peak of a block, once it has ended. bytes: beyond what was allocated before it."""

    bytes = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with Live() as live:
            yield peak
        peak.bytes = live.peak
