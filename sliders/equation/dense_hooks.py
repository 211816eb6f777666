"""Changes that are no low-rank products, acting unmerged: multiplied out, each as a layer beside the model's.

Multiplied out, a change is as large as the weight that it changes. It is kept while there is room for it, and made
anew in every call otherwise: it is then there for the time of one layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from .layer_kinds import along, dense_output
from .module_changes import ModuleChanges, Patch, apply_changes, dependent_parameters, of_parameter
from .parameters import ParameterAccess, own_parameter
from .strengths import LayerStrengths

# Of changes that are worked out together, for so many sets of strengths at most
_KEPT_STRENGTHS = 4
Hook = Callable[..., Tensor]


class DenseCache:
    """Keeps tensors that changes were multiplied out to, within a number of bytes."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, OrderedDict[Hashable, Tensor]] = {}
        self._room: float | None = inf

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return sum(_size(tensor) for kept in self._kept.values() for tensor in kept.values())

    def clear(self) -> None:
        self._kept.clear()

    def allow(self, room: float | None) -> None:
        """Let so many bytes more be kept; with None nothing is kept, and nothing that was kept is used."""
        self._room = room

    def get(self, change: Hashable, strengths: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return what is kept of a change at these strengths, or make it, and keep it if there is room."""
        if self._room is None:
            return make()
        kept = self._kept.setdefault(change, OrderedDict())
        if strengths not in kept:
            while len(kept) >= _KEPT_STRENGTHS:
                self._room += _size(kept.popitem(last=False)[1])
            made = make()
            if _size(made) > self._room:
                return made
            self._room -= _size(made)
            kept[strengths] = made
        kept.move_to_end(strengths)
        return kept[strengths]

    def forget(self, change: Hashable) -> None:
        """Drop what was kept of a change."""
        self._kept.pop(change, None)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def patch_hook(
    index: int,
    name: str,
    changes: ModuleChanges,
    strengths: LayerStrengths,
    cache: DenseCache,
    parameters: ParameterAccess,
) -> Hook | None:
    """Make a forward hook that adds a layer's patches, and the changes that depend on them; None if it has no patch.

    index: of the layer, to find what is kept. changes: of the layer, in order. strengths: of each evaluation.
    """
    dependent = dependent_parameters(changes)
    alone = [(i, c) for i, c in changes if isinstance(c, Patch) and c.parameter not in dependent]
    if not dependent and not alone:
        return None

    def add_change(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        for slider, patch in alone:
            make = partial(_multiplied, patch, module, name, x, parameters)
            difference = cache.get((index, patch, x.device, x.dtype), None, make)
            factor = along(strengths.expanded((slider,), x, name), y, channel=None)
            y = y + factor * dense_output(module, x, {patch.parameter: difference}).to(y.dtype)
        for parameter in dependent:
            own, at = of_parameter(parameter, changes), strengths.strengths[0]
            key = tuple((i, float(at[i])) for i, _ in own)
            together = partial(_together, own, parameter, module, at, name, x, parameters)
            difference = cache.get((index, parameter, x.device, x.dtype), key, together)
            y = y + dense_output(module, x, {parameter: difference}).to(y.dtype)
        return y

    return add_change


# Tensors made in inference mode could not be saved for backward, should the model be trained on
@torch.inference_mode(False)
@torch.no_grad()
def _multiplied(patch: Patch, module: nn.Module, name: str, x: Tensor, parameters: ParameterAccess) -> Tensor:
    """Return what a change alone adds to the parameter at strength 1, for the input x."""
    if patch.relative:
        own = parameters.value(module, patch.parameter, x.device)
    else:
        own = torch.empty(own_parameter(module, patch.parameter).shape, device=x.device)  # only its shape matters
    return patch.difference(own, name).to(x.dtype)


@torch.inference_mode(False)
@torch.no_grad()
def _together(
    changes: ModuleChanges,
    parameter: str,
    module: nn.Module,
    strengths: Tensor,
    name: str,
    x: Tensor,
    parameters: ParameterAccess,
) -> Tensor:
    """Return what these changes add to the parameter, one after the other, for the input x."""
    own = parameters.value(module, parameter, x.device)
    return apply_changes(own.clone(), parameter, changes, strengths, name).sub_(own).to(x.dtype)
