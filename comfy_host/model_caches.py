"""What a model keeps between evaluations, and what a slider must not meet there: compiled graphs, cached prompts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

COMPILED = "torch.compile"  # the key of the wrapper that ComfyUI's TorchCompileModel node adds
_CACHES = ("_kv_cache_entries", "_visual_cache")  # attributes of HiDream O1's network


def uncompiled(transformer_options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Run a compiled model as it is written within the block: its graph does not know of hooks that came later."""
    if COMPILED in transformer_options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


class PromptCache:
    """The prompt's keys and values that a model has cached while sliders act, apart from those without sliders.

    HiDream O1 caches them for as long as the prompt stays the same. They come from layers that sliders change, so the
    two caches must not be mixed.
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, dict[str, Any]] | None = None

    @contextmanager
    def in_use(self, base_model: nn.Module, key: Hashable) -> Iterator[None]:
        """Let the model use what it cached under the same key within the block, and its own cache after it.

        key: what the sliders do. With None the model begins with an empty cache, and nothing of it is kept.
        """
        network: Any = base_model.diffusion_model
        if not hasattr(network, "clear_kv_cache"):
            yield
            return
        own = {name: getattr(network, name) for name in _CACHES if hasattr(network, name)}
        network.clear_kv_cache()
        if key is not None and self._kept is not None and self._kept[0] == key:
            vars(network).update(self._kept[1])
        try:
            yield
            self._kept = None if key is None else (key, {name: getattr(network, name) for name in own})
        finally:
            vars(network).update(own)

    def clear(self) -> None:
        """Drop the cache."""
        self._kept = None
