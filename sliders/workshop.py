"""What the sliders on one model share between evaluations and between runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from .merged import MergedWeights
from .prompt_cache import PromptCache

T = TypeVar("T")
# One stack is turned again and again; a second one is that of another clone of the model in the same graph
_KEPT_STACKS = 2
_KEPT_MATCHES = 256


class Workshop:
    """Belongs to one module tree, and goes with it.

    Dragging one slider of many makes new stacks all the time. What does not depend on the strengths is looked up
    here by what the sliders hold, not by which objects they are: where their layers are in the model, and their
    tensors on the device.
    """

    def __init__(self) -> None:
        self.merged = MergedWeights()
        self.prompt_cache = PromptCache()
        self.names: Any = None  # the host's names for the model's weights
        self._matches: OrderedDict[Hashable, Any] = OrderedDict()
        self._banks: OrderedDict[Hashable, Any] = OrderedDict()

    def __deepcopy__(self, memo: dict) -> Workshop:
        return Workshop()  # a copied model has weights of its own

    def match(self, key: Hashable, make: Callable[[], T]) -> T:
        """Where a slider's layers are in the model."""
        return _kept(self._matches, key, make, _KEPT_MATCHES)

    def bank(self, key: Hashable, make: Callable[[], T]) -> T:
        """The sliders of a stack, gathered layer by layer."""
        return _kept(self._banks, key, make, _KEPT_STACKS)

    def clear(self) -> None:
        """Give back the memory of everything that can be made again."""
        self.merged.drop()
        self.prompt_cache.clear()
        self._banks.clear()


def _kept(store: OrderedDict, key: Hashable, make: Callable[[], T], limit: int) -> T:
    if key not in store:
        store[key] = make()
    store.move_to_end(key)
    while len(store) > limit:
        store.popitem(last=False)
    return store[key]
