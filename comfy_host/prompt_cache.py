"""Models that keep what they made of the prompt between evaluations.

HiDream O1 keeps the prompt's keys and values, for as long as the prompt is the same. Layers that sliders change made
them, so what was kept with sliders and what was kept without must not meet.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from torch import nn

_ATTRIBUTES = ("_kv_cache_entries", "_visual_cache")


class PromptCache:
    """What a model keeps of its prompts while sliders act, beside its own."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, dict] | None = None

    @contextmanager
    def instead(self, base_model: nn.Module, key: Hashable) -> Iterator[None]:
        """The model uses what it kept under the same key, and its own again after the block.

        key: what the sliders do; None keeps nothing.
        """
        model = base_model.diffusion_model
        if not hasattr(model, "clear_kv_cache"):
            yield
            return
        own = {name: getattr(model, name) for name in _ATTRIBUTES if hasattr(model, name)}
        model.clear_kv_cache()
        if key is not None and self._kept is not None and self._kept[0] == key:
            vars(model).update(self._kept[1])
        try:
            yield
            self._kept = None if key is None else (key, {name: getattr(model, name) for name in own})
        finally:
            vars(model).update(own)

    def clear(self) -> None:
        self._kept = None
