"""The changes of a layer's weight that a slider is made of: low-rank, multiplied out, or an adapter of another kind.

Each is a plain value. What a change does to a model is worked out in `equation`; how it is spelled in a file, in
`formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """The low-rank change of one layer's weight: delta = up @ down.

    The LoRA scale alpha / rank is already folded into `up`.
    down: (rank, in), or (rank, in, *kernel) for a convolution.
    up: (out, rank), or (out, rank, 1, ...) for a convolution.
    Raises ValueError if the two do not fit each other.
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        check_shapes("a low-rank layer", self.down, self.up)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by names for messages."""
        return {"down projection": self.down, "up projection": self.up}

    def check(self, name: str) -> None:
        """Raise ValueError naming the layer if its shapes do not fit or a number in it is NaN or infinite."""
        check_shapes(name, self.down, self.up)
        _check_finite(name, self.parts)

    def scaled(self, factor: float) -> LowRank:
        """Return the change times a factor."""
        return LowRank(self.down, self.up * factor)

    def fitted(self, weight_shape: tuple[int, ...], name: str) -> LowRank:
        """Return the same change, shaped for a weight of shape (out, in) or (out, in, *kernel).

        A 1x1 convolution and a linear layer hold the same numbers, and files use either form for both.
        Raises ValueError naming the layer and both shapes if the numbers do not fit.
        """
        out, *inner = weight_shape
        if self.up.shape[0] != out or prod(self.down.shape[1:]) != prod(inner):
            raise ValueError(
                f"Layer {name}: the slider has down {tuple(self.down.shape)} and up {tuple(self.up.shape)}, "
                f"but the model's weight there is {tuple(weight_shape)}. Was it made for another model?"
            )
        down_shape = (self.rank, *inner)
        up_shape = (out, self.rank, *(1 for _ in inner[1:]))
        if self.down.shape == down_shape and self.up.shape == up_shape:
            return self
        return LowRank(self.down.reshape(down_shape), self.up.reshape(up_shape))

    def widened(self, part: tuple[int, int, int], weight_shape: tuple[int, ...], name: str) -> LowRank:
        """Return the change of a whole weight that changes one part of it, with zeros everywhere else.

        part: (dimension, start, length) of what this change is for, such as the queries of a joint qkv weight.
        Raises ValueError naming the layer if the numbers do not fit.
        """
        dim, start, length = part
        fitted = self.fitted((*weight_shape[:dim], length, *weight_shape[dim + 1 :]), name)
        side = fitted.up if dim == 0 else fitted.down
        whole = side.new_zeros(*side.shape[:dim], weight_shape[dim], *side.shape[dim + 1 :])
        whole.narrow(dim, start, length).copy_(side)
        return LowRank(fitted.down, whole) if dim == 0 else LowRank(whole, fitted.up)

    @staticmethod
    def fresh(weight_shape: tuple[int, ...], rank: int, generator: torch.Generator | None = None) -> LowRank:
        """Make an untrained float32 change for a weight of that shape: random down, zero up, so that delta is 0."""
        out, *inner = weight_shape
        bound = prod(inner) ** -0.5  # the usual start of a LoRA: uniform with variance 1 / (3 fan_in)
        down = torch.empty(rank, *inner).uniform_(-bound, bound, generator=generator)
        return LowRank(down, torch.zeros(out, rank, *(1 for _ in inner[1:])))


@dataclass(frozen=True, eq=False)
class Adapter:
    """The change of one layer in a form that is not one low-rank product of its weight.

    LoHa, LoKr, DoRA, OFT, BOFT, GLoRA; differences of a weight, a bias or a norm; a low-rank change with a
    bias beside it.
    parts: the tensors by the endings of their keys in a file, without the dot: "hada_w1_a", "lokr_w1",
        "lora_up.weight" with "dora_scale", "diff", "diff_b", "w_norm", "alpha", ...
    scale: a factor of the whole change.
    """

    parts: Mapping[str, Tensor]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The rank of its product, or 0 if it has none."""
        for ending, dimension in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
            if ending in self.parts:
                return self.parts[ending].shape[dimension]
        return 0

    def check(self, name: str) -> None:
        """Raise ValueError naming the layer if it has no tensors or a number in them is NaN or infinite."""
        if not self.parts:
            raise ValueError(f"Layer {name} has no weights.")
        _check_finite(name, self.parts)

    def scaled(self, factor: float) -> Adapter:
        """Return the change times a factor."""
        return Adapter(self.parts, self.scale * factor)


Change = LowRank | Adapter  # of one layer, as a slider holds it


@dataclass(frozen=True, eq=False)
class Dense:
    """A change of one module's parameters, multiplied out.

    differences: by the parameter's name in its module ("weight", "bias", ...), shaped as the parameter.
    """

    differences: Mapping[str, Tensor]

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Its tensors by names for messages."""
        return self.differences

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        """Return the change on a device and in a dtype."""
        return Dense({name: t.to(device, dtype) for name, t in self.differences.items()})


def check_shapes(name: str, down: Tensor, up: Tensor) -> None:
    """Raise ValueError, naming the layer, if the two are not the projections of one low-rank change."""
    shapes = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
    if not (down.is_floating_point() and up.is_floating_point()):
        raise ValueError(f"Layer {name}: weights must be floating-point numbers; got {down.dtype} and {up.dtype}.")
    if not 2 <= down.ndim <= 5 or not 2 <= up.ndim <= 5:
        raise ValueError(f"Layer {name}: a projection has 2 dimensions, or 3 to 5 for a convolution; got {shapes}.")
    if down.shape[0] != up.shape[1] or prod(up.shape[2:]) != 1:
        raise ValueError(
            f"Layer {name}: down must be (rank, in, ...) and up (out, rank) or (out, rank, 1, ...), "
            f"of one rank; got {shapes}."
        )
    if not down.numel() or not up.numel():
        raise ValueError(f"Layer {name}: its weights are empty: {shapes}.")


def _check_finite(name: str, parts: Mapping[str, Tensor]) -> None:
    for part, tensor in parts.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise ValueError(
                f"Layer {name}: {bad} of the {tensor.numel()} numbers of its {part} are NaN or infinite."
            )
