"""Converts a slider's layers to the names of another convention, also where that one divides weights differently.

ComfyUI maps every layer name to a weight of the model or a slice of one, such as the queries of a joint qkv weight.
Two names of one slice are synonyms. The change of a slice is widened with zeros if a convention has a name for the
whole weight only; the change of a whole weight is cut if it has names for all the slices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..changes import Change, LowRank, kind_of

ShapeOf = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class WeightSlice:
    """What a layer name stands for: a weight of the model, or rows of it, maybe in another order.

    key: the weight's in the state dict. part: (dimension, start, length), or None for all of it.
    order: the function that ComfyUI applies to the outputs of a change, or None.
    """

    key: str
    part: tuple[int, int, int] | None = None
    order: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def of(target: Any) -> WeightSlice:
        """Read an entry of ComfyUI's key map: a key, or (key, part), or (key, part, order)."""
        return WeightSlice(*target) if isinstance(target, tuple) else WeightSlice(target)


def convert_layers(
    layers: Mapping[str, Change],
    targets: Mapping[str, Any],
    names: Mapping[str, Mapping[WeightSlice, str]],
    shape_of: ShapeOf,
) -> tuple[dict[str, Change], tuple[str, ...]]:
    """Return a slider's layers under the names of a convention, and those that have no name in it, with their kinds.

    targets: what each layer stands for in the model, as ComfyUI's key maps have it. names: the convention's names, by
    the weight's key and slice. shape_of: the shape of a weight by its key.
    """
    pieces: dict[str, list[Change]] = {}
    unnamed = []
    for name, change in layers.items():
        weight = WeightSlice.of(targets[name])
        found = _moved(change, weight, names.get(weight.key, {}), partial(shape_of, weight.key), name)
        if not found:
            unnamed.append(f"{name} ({kind_of(change)})")
        for new, piece in found:
            pieces.setdefault(new, []).append(piece)
    return {name: _together(name, changes) for name, changes in pieces.items()}, tuple(unnamed)


def _moved(
    change: Change,
    weight: WeightSlice,
    names: Mapping[WeightSlice, str],
    shape: Callable[[], tuple[int, ...]],
    name: str,
) -> list[tuple[str, Change]]:
    """Return (new name, change) pairs that add up to the change; none if these names cannot say it."""
    if weight in names:
        return [(names[weight], change)]
    if not isinstance(change, LowRank):
        return []
    for other, new in names.items():  # the same rows in another order
        if other.part == weight.part and (reordered := _reordered(change, weight, other)) is not None:
            return [(new, reordered)]
    whole = WeightSlice(weight.key)
    if weight.part is not None and weight.order is None and whole in names:
        return [(names[whole], _widened(change, weight.part, shape(), name))]
    if weight == whole:
        return _cut(change, names, shape(), name)
    return []


def _reordered(change: LowRank, weight: WeightSlice, other: WeightSlice) -> LowRank | None:
    """Return the change whose outputs in the order of `other` are those of this one in the order of `weight`."""
    up = change.up if weight.order is None else weight.order(change.up)
    if other.order is None:
        return LowRank(change.down, up)
    numbers = torch.arange(len(up))
    if not torch.equal(other.order(other.order(numbers)), numbers):
        return None  # not its own inverse, such as a swap of halves is
    return LowRank(change.down, other.order(up))


def _widened(change: LowRank, part: tuple[int, int, int], shape: tuple[int, ...], name: str) -> LowRank:
    dim, start, length = part
    if start + length > shape[dim]:
        raise ValueError(f"Layer {name} stands for rows {start} to {start + length} of a weight of {shape[dim]}.")
    return change.widened(part, shape, name)


def _cut(
    change: LowRank, names: Mapping[WeightSlice, str], shape: tuple[int, ...], name: str
) -> list[tuple[str, Change]]:
    """Cut the change of a weight into changes of its slices, if these are all of it."""
    parts = sorted(
        (weight.part, new) for weight, new in names.items() if weight.part is not None and weight.order is None
    )
    ends = [start + length for (_, start, length), _ in parts]
    starts = [start for (_, start, _), _ in parts]
    if not parts or any(dim for (dim, _, _), _ in parts) or [*starts, shape[0]] != [0, *ends]:
        return []
    fitted = change.fitted(shape, name)
    pieces = [(new, fitted.up.narrow(0, start, length)) for (_, start, length), new in parts]
    return [(new, _used(fitted.down, up)) for new, up in pieces if up.any()]


def _used(down: Tensor, up: Tensor) -> LowRank:
    """Return the product without the columns of `up` that are zero: widened slices come back at their own rank."""
    columns = up.flatten(2).any(dim=2).any(dim=0) if up.ndim > 2 else up.any(dim=0)
    return LowRank(down[columns], up[:, columns])


def _together(name: str, changes: Iterable[Change]) -> Change:
    """Join several changes of one layer.

    Raises ValueError, naming the layer, where they are not all low-rank products.
    """
    changes = list(changes)
    if len(changes) == 1:
        return changes[0]
    products = [change for change in changes if isinstance(change, LowRank)]
    if len(products) < len(changes):
        raise ValueError(f"Several layers of the slider are {name} in this convention, and not all are low-rank.")
    shape = max((change.down.shape[1:] for change in products), key=lambda inner: (len(inner), prod(inner)))
    fitted = [change.fitted((change.up.shape[0], *shape), name) for change in products]
    return LowRank(torch.cat([c.down.float() for c in fitted]), torch.cat([c.up.float() for c in fitted], dim=1))
