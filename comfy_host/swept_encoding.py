"""Sweeps of sliders on the text encoders: one encoding a strength, side by side in the conditioning's batch.

ComfyUI gives each latent of a batch its own entry of a conditioning that has as many. A prompt is therefore encoded
once for every set of strengths, and what differs between them is put together by batch entry. Sliders act by hooks
while an encoder runs: its weights stay as ComfyUI has patched them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.module_changes import ModuleChange
from ..sliders.equation.reach import evaluated
from ..sliders.stack import Stack, StackedSlider
from .parameters import COMFY_PARAMETERS

ENCODE = "encode_token_weights"  # the method of ComfyUI's text encoders by which all prompts are encoded

Encode = Callable[..., tuple[Any, ...]]
Placed = tuple[StackedSlider, Mapping[str, Sequence[ModuleChange]]]  # a slider, and its changes by path of the module


class SweptEncoding:
    """Text encoders' `encode_token_weights` with swept sliders acting in it.

    encode: the encoders' own. encoders: the tree of their modules. placed: the sliders.
    Raises ValueError if two of them are swept over different numbers of batch entries, or a change does not fit.
    """

    def __init__(self, encode: Encode, encoders: nn.Module, placed: Sequence[Placed]) -> None:
        self.encode, self.placed = encode, tuple(placed)
        self.strengths = Stack(tuple(stacked for stacked, _ in placed)).strengths()  # (B, sliders)
        layers: dict[nn.Module, tuple[tuple[int, ModuleChange], ...]] = {}
        names: dict[nn.Module, str] = {}
        for index, (_, changes) in enumerate(self.placed):
            for path, of_module in changes.items():
                module = encoders.get_submodule(path)
                names[module] = path
                layers[module] = (*layers.get(module, ()), *((index, change) for change in of_module))
        self._hooks = SliderHooks(layers, names, COMFY_PARAMETERS)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Encode a prompt: what ComfyUI's method returns, with B entries of every tensor that the sliders change."""
        rows, entries = self.strengths.unique(dim=0, return_inverse=True)

        def encoded_at(row: Tensor) -> tuple[Any, ...]:
            with self._hooks.acting(row[None], room=None):  # ComfyUI may patch the weights anew between two calls
                return self.encode(*args, **kwargs)

        encoded = [evaluated(partial(encoded_at, row)) for row in rows]
        together: tuple[Any, ...] = _by_entry(encoded, entries)
        return together


def sweep_encodings(patcher: ModelPatcher, placed: Sequence[Placed]) -> None:
    """Let sliders with a strength for each batch entry act when prompts are encoded, beside those that do already.

    patcher: of a clone of the text encoders; ComfyUI puts its object patch in place whenever it loads this clone.
    """
    present = patcher.get_model_object(ENCODE)
    encode = present
    if isinstance(present, SweptEncoding):
        encode, placed = present.encode, (*present.placed, *placed)
    patcher.add_object_patch(ENCODE, SweptEncoding(encode, patcher.model, placed))


def _by_entry(encoded: Sequence[Any], entries: Tensor) -> Any:
    """Put encodings at several strengths together: (1, ...) each -> (B, ...), one where all of them are the same.

    entries: (B,), the index of the encoding that each batch entry has.
    """
    first, *others = encoded
    if isinstance(first, Tensor):
        if all(torch.equal(first, other) for other in others):
            return first
        if len(first) != 1:
            raise ValueError(
                f"A prompt that is encoded to {len(first)} batch entries cannot be swept; it must be one."
            )
        return torch.cat(list(encoded))[entries.to(first.device)]
    if isinstance(first, dict):
        return {key: _by_entry([each[key] for each in encoded], entries) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_by_entry(each, entries) for each in zip(*encoded, strict=True))
    return first
