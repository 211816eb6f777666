"""Changes that are no product of two, acting by rows: multiplied out, each as a layer of its own beside the model's.

Multiplied out, a change is as large as the weight that it changes. It is kept so where there is room, and made anew
in every call where there is not: it is then there for the time of one layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf
from typing import Protocol

import torch
from torch import Tensor, nn

from .layer_kinds import along, dense_output
from .weight_changes import ModuleChanges, Patch, bound_together, on, own_weight, worked_out

# Of changes that are worked out together, for so many sets of strengths at most
_KEPT_STRENGTHS = 4


class Strengths(Protocol):
    """strengths: (rows, sliders). over: those of some sliders, spread over the batch of a layer's input."""

    strengths: Tensor

    def over(self, columns: tuple[int, ...], x: Tensor, name: str) -> Tensor: ...


class Shelf:
    """What is kept multiplied out."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, OrderedDict[Hashable, Tensor]] = {}
        self._room: float | None = inf

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return sum(_size(tensor) for shelf in self._kept.values() for tensor in shelf.values())

    def clear(self) -> None:
        self._kept.clear()

    def allow(self, room: float | None) -> None:
        """Let so many bytes more be kept; with None nothing is kept, and nothing that was kept is used."""
        self._room = room

    def take(self, of: Hashable, at: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What is kept of a change, at these strengths; made where there is none."""
        if self._room is None:
            return make()
        shelf = self._kept.setdefault(of, OrderedDict())
        if at not in shelf:
            while len(shelf) >= _KEPT_STRENGTHS:
                self._room += _size(shelf.popitem(last=False)[1])
            made = make()
            if _size(made) > self._room:
                return made
            self._room -= _size(made)
            shelf[at] = made
        shelf.move_to_end(at)
        return shelf[at]

    def forget(self, of: Hashable) -> None:
        """What was kept of a change is not true any more."""
        self._kept.pop(of, None)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def patch_hook(
    index: int, name: str, chosen: ModuleChanges, spread: Strengths, shelf: Shelf
) -> Callable[..., Tensor] | None:
    """A forward hook that adds a layer's changes that are patches, and those bound to them; None without any.

    index: of the layer. chosen: its changes, in order. spread: has the strengths of each call.
    """
    together = bound_together(chosen)
    alone = [(i, c) for i, c in chosen if isinstance(c, Patch) and c.parameter not in together]
    if not together and not alone:
        return None

    def add_change(module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        for slider, patch in alone:
            key = (index, patch, x.device, x.dtype)
            change = shelf.take(key, None, lambda patch=patch: _multiplied(patch, module, name, x))
            factor = along(spread.over((slider,), x, name), y, channel=None)
            y = y + factor * dense_output(module, x, {patch.parameter: change}).to(y.dtype)
        for parameter in together:
            own, strengths = on(parameter, chosen), spread.strengths[0]
            at = tuple((i, float(strengths[i])) for i, _ in own)
            change = shelf.take(
                (index, parameter, x.device, x.dtype),
                at,
                lambda parameter=parameter, own=own, s=strengths: _together(own, parameter, module, s, name, x),
            )
            y = y + dense_output(module, x, {parameter: change}).to(y.dtype)
        return y

    return add_change


# Tensors made in inference mode could not be saved for backward, should the model be trained on
@torch.inference_mode(False)
@torch.no_grad()
def _multiplied(patch: Patch, module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a change alone adds to the parameter at strength 1, for the input x."""
    if patch.relative:
        own = own_weight(module, patch.parameter, x.device)
    else:
        own = torch.empty(module._parameters[patch.parameter].shape, device=x.device)  # only its shape matters
    return patch.difference(own, name).to(x.dtype)


@torch.inference_mode(False)
@torch.no_grad()
def _together(
    changes: ModuleChanges, parameter: str, module: nn.Module, strengths: Tensor, name: str, x: Tensor
) -> Tensor:
    """What these changes add to the parameter, one after the other, for the input x."""
    own = own_weight(module, parameter, x.device)
    return worked_out(own.clone(), parameter, changes, strengths, name).sub_(own).to(x.dtype)
