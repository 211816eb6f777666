"""Whether a change has the shape of the weight it is for, told from the shapes of its parts alone.

A few kilobytes of factors can stand for a product of gigabytes: nothing is multiplied here to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ..changes import Adapter
from .kinds import DORA, DOWN, UP, kind_of

Shape = tuple[int, ...]


def check_fits(name: str, change: Adapter, weight: Shape) -> None:
    """Raise ValueError, naming the layer and both shapes, unless the change fits a weight of this shape.

    weight: (out, in), (out, in, *kernel) or, for norms, (out,); of the part alone where only a part is changed.
    What a change does to a bias is not looked at, see `check_bias`.
    """
    shapes = {part: tuple(tensor.shape) for part, tensor in change.parts.items()}
    made = _made(shapes, weight)
    plain = "diff" in shapes or "w_norm" in shapes  # the host reshapes products only
    if made is not None and not (made == weight if plain else _alike(made, weight)):
        raise _misfit(name, f"its {kind_of(change)} change is of shape {made}", weight)
    if made is not None and not _can_take(shapes, weight):
        raise _misfit(name, f"its {kind_of(change)} change is made for one of another shape", weight)
    if DORA in change.parts:
        _check_magnitudes(name, tuple(change.parts[DORA].shape), weight)


def check_bias(name: str, given: Shape, bias: Shape) -> None:
    """Raise ValueError, naming the layer and both shapes, unless a difference fits a bias of this shape."""
    if given != bias:
        raise _misfit(name, f"its difference of the bias is of shape {given}", bias, "bias")


def part_shape(name: str, shape: Shape, part: tuple[int, int, int] | None) -> Shape:
    """The shape of a part of a weight. part: (dimension, start, length), or None for all of it.

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


def _alike(made: Shape, weight: Shape) -> bool:
    """Whether they hold the same numbers in the same order, as a linear layer and a 1x1 convolution do."""
    return bool(weight) and made[0] == weight[0] and prod(made[1:]) == prod(weight[1:])


def _made(shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
    """The shape of the whole difference; None where there is none, as for a bias alone."""
    if DOWN in shapes:
        return (shapes[UP][0], *shapes[DOWN][1:])
    if "hada_w1_a" in shapes:
        if "hada_t1" in shapes:
            return (shapes["hada_w1_a"][1], shapes["hada_w1_b"][1], *shapes["hada_t1"][2:])
        return (shapes["hada_w1_a"][0], shapes["hada_w1_b"][1])
    if "oft_blocks" in shapes:
        *_, number, size, _ = shapes["oft_blocks"]
        return (number * size, *weight[1:])  # it turns outputs, whatever the inputs
    if "a1.weight" in shapes:
        return _of_glora(shapes, weight)
    if any(part.startswith("lokr_") for part in shapes):
        return _kronecker(_factor(shapes, "lokr_w1"), _factor(shapes, "lokr_w2"))
    return next((shapes[part] for part in ("diff", "w_norm") if part in shapes), None)


def _factor(shapes: Mapping[str, Shape], whole: str) -> Shape:
    if whole in shapes:
        return shapes[whole]
    a, b = shapes[f"{whole}_a"], shapes[f"{whole}_b"]
    if whole == "lokr_w2" and "lokr_t2" in shapes:
        return (a[1], b[1], *shapes["lokr_t2"][2:])
    return (a[0], b[1])


def _kronecker(first: Shape, second: Shape) -> Shape:
    """The shape of their Kronecker product as the host forms it: a kernel is the second factor's alone."""
    if len(first) == 2 and len(second) == 4:
        first = (*first, 1, 1)
    length = max(len(first), len(second))
    first, second = ((1,) * (length - len(shape)) + shape for shape in (first, second))
    return tuple(a * b for a, b in zip(first, second))


def _can_take(shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Whether a change that is made of the weight itself, BOFT or GLoRA, can take a weight of this shape."""
    if len(blocks := shapes.get("oft_blocks", ())) == 4:
        stages, _, size, _ = blocks
        return size % 2 == 0 and weight[0] % (2 ** (stages - 1) * size) == 0  # or its butterflies end halfway
    if "a1.weight" not in shapes:
        return True
    a1, a2 = shapes["a1.weight"], shapes["a2.weight"]
    ends = (a2[0], prod(a1[1:])) if _older_glora(shapes, weight) else (a1[0], prod(a2[1:]))
    return ends in ((prod(weight[1:]),) * 2, weight[1:2] * 2)


def _of_glora(shapes: Mapping[str, Shape], weight: Shape) -> Shape:
    b1, b2 = shapes["b1.weight"], shapes["b2.weight"]
    return (b2[0], prod(b1[1:])) if _older_glora(shapes, weight) else (b1[0], prod(b2[1:]))


def _older_glora(shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Whether the factors are in the older of its two layouts, by the host's rule."""
    a1, a2, b1, b2 = (shapes[part][:2] for part in ("a1.weight", "a2.weight", "b1.weight", "b2.weight"))
    older = b2[1] == b1[0] == a1[0] == a2[1]
    newer = b2[0] == b1[1] == a1[1] == a2[0]
    return older and (not newer or a2[0] == weight[0] == weight[1])


def _check_magnitudes(name: str, given: Shape, weight: Shape) -> None:
    """DoRA's, one for each output, (out, 1, ...), or for each input, (1, in, 1, ...)."""
    ones = (1,) * (len(weight) - 2)
    if given not in ((weight[0], 1, *ones), (1, *weight[1:2], *ones)):
        raise _misfit(name, f"DoRA's magnitudes are of shape {given}", weight)


def _misfit(name: str, what: str, shape: Shape, parameter: str = "weight") -> ValueError:
    return ValueError(
        f"Layer {name}: {what}, but the model's {parameter} there is {tuple(shape)}. Was it made for another model?"
    )
