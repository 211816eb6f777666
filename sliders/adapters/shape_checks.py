"""Checks that an adapter has the shape of the weight it is for, by the shapes of its parts alone."""

from __future__ import annotations

from . import described, kind_of_parts
from .kind import DORA, PEFT_MAGNITUDE, Parts, Shape
from .lora import magnitudes_fit


def check_fits(name: str, parts: Parts, weight: Shape) -> None:
    """Raise ValueError, naming the layer and both shapes, unless an adapter fits a weight of this shape.

    weight: (out, in), (out, in, *kernel) or, for norms, (out,); of the part alone if only a part is changed.
    What the adapter does to a bias is not looked at, see `check_bias`.
    """
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    kind = kind_of_parts(parts)
    delta = kind.delta_shape(shapes, weight) if kind else None
    if kind is not None and delta is not None:
        if not kind.fits(delta, weight):
            raise _misfit(name, f"its {described(parts)} change is of shape {delta}", weight)
        if not kind.takes(shapes, weight):
            raise _misfit(name, f"its {described(parts)} change is made for one of another shape", weight)
    if DORA in shapes and not magnitudes_fit(shapes[DORA], weight):
        raise _misfit(name, f"DoRA's magnitudes are of shape {shapes[DORA]}", weight)
    if PEFT_MAGNITUDE in shapes and shapes[PEFT_MAGNITUDE] != weight[:1]:
        raise _misfit(name, f"DoRA's magnitudes are of shape {shapes[PEFT_MAGNITUDE]}", weight)


def check_bias(name: str, given: Shape, bias: Shape) -> None:
    """Raise ValueError, naming the layer and both shapes, unless a difference fits a bias of this shape."""
    if given != bias:
        raise _misfit(name, f"its difference of the bias is of shape {given}", bias, "bias")


def part_shape(name: str, shape: Shape, part: tuple[int, int, int] | None) -> Shape:
    """Return the shape of a part of a weight. part: (dimension, start, length), or None for all of it.

    Raises ValueError, naming the layer, if the weight ends before the part does.
    """
    if part is None:
        return shape
    dim, start, length = part
    if dim >= len(shape) or start + length > shape[dim]:
        raise ValueError(
            f"Layer {name} stands for {length} rows from {start} on of a weight of shape {shape}: there are fewer."
        )
    return (*shape[:dim], length, *shape[dim + 1 :])


def _misfit(name: str, what: str, shape: Shape, parameter: str = "weight") -> ValueError:
    return ValueError(
        f"Layer {name}: {what}, but the model's {parameter} there is {tuple(shape)}. Was it made for another model?"
    )
