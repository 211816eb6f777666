"""The changes of a layer that a slider is made of: low-rank products, and adapters of other kinds.

Each is a plain value. What a change does to a model is worked out in `equation`; how it is spelled in a file, in
`formats`; what the kinds of adapters are, in `adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from .adapters import described, kind_of_parts
from .adapters.kind import ALPHA, BIAS, DOWN, MAGNITUDES, UP, AdapterKind, Parts, scaled_exactly
from .adapters.lora import alpha_scale, check_shapes


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
    def kind(self) -> AdapterKind:
        """What kind of adapter it is. Raises ValueError if its parts make none."""
        if (kind := kind_of_parts(self.parts)) is None:
            raise ValueError(f"{', '.join(self.parts)} make no adapter of a known kind.")
        return kind

    @property
    def rank(self) -> int:
        """The rank of its product, or 0 if it has none."""
        return self.kind.rank(self.parts)

    @property
    def relative(self) -> bool:
        """True if the change depends on the weight that it changes."""
        return self.kind.relative or self.has_magnitudes

    @property
    def has_magnitudes(self) -> bool:
        """True if it is a DoRA, of a low-rank product or of another kind."""
        return any(part in self.parts for part in MAGNITUDES)

    @property
    def linear(self) -> bool:
        """True if twice the strength is twice the change."""
        return self.kind.linear

    def check(self, name: str) -> None:
        """Raise ValueError naming the layer if it has no tensors or a number in them is NaN or infinite."""
        if not self.parts:
            raise ValueError(f"Layer {name} has no weights.")
        _check_finite(name, self.parts)

    def scaled(self, factor: float) -> Adapter:
        """Return the change times a factor."""
        return Adapter(self.parts, self.scale * factor)

    def scaled_parts(self, name: str) -> dict[str, Tensor]:
        """Return the parts with the scale in them, as a file has to have it: in alpha, or in a difference.

        Raises ValueError, naming the layer, if no parts of its kind are the scaled change.
        """
        if self.scale == 1.0:
            return dict(self.parts)
        scaled = None if self.has_magnitudes else self.kind.scaled(self.parts, self.scale)
        if scaled is None:
            raise ValueError(
                f"Layer {name} is {kind_of(self)}, and a file cannot hold it at a strength of {self.scale:g}, only "
                "at 1: it is no sum with the model's weight. Save it at strength 1."
            )
        if BIAS in scaled:
            scaled[BIAS] = scaled[BIAS].float() * self.scale
        return scaled


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


def kind_of(change: Change) -> str:
    """Return what a change is called: "LoRA", "DoRA", "LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "difference", ..."""
    return "LoRA" if isinstance(change, LowRank) else described(change.parts)


def change_from(name: str, parts: Parts) -> Change:
    """Make the change of one layer from its tensors; alpha / rank is folded in if it is one product.

    name: the layer's, for messages.
    Raises ValueError if they are of no kind, of several, incomplete, or do not fit each other.
    """
    parts = {part: _numbers(name, part, tensor) for part, tensor in parts.items()}
    kind = kind_of_parts(parts)
    if kind is None:
        raise ValueError(f"layer {name} has only {', '.join(parts)}, which changes nothing.")
    if strange := [part for part in parts if part not in kind.known_parts]:
        raise ValueError(f"layer {name} is a {kind.name} change and also has {strange[0]}; it can be one of them.")
    checked = kind.checked(name, parts)
    if DOWN in checked and not {*MAGNITUDES, BIAS} & checked.keys():
        return LowRank(checked[DOWN], scaled_exactly(checked[UP], alpha_scale(checked)))
    # In one order, whatever the file's: equal changes then have equal hashes
    return Adapter({part: t.float() if part == ALPHA else t for part, t in sorted(checked.items())})


def _numbers(name: str, part: str, tensor: Tensor) -> Tensor:
    """Return the same numbers in a dtype that every later step can compute with."""
    if part == ALPHA:
        number = tensor.item() if tensor.numel() == 1 and not tensor.is_complex() else float("nan")
        if not isfinite(number):
            shown = str(tensor.tolist()) if tensor.numel() < 5 else f"{tensor.numel()} numbers"
            raise ValueError(f"layer {name}: alpha must be one finite number; got {shown}.")
        return torch.tensor(number, dtype=torch.float64)
    if not tensor.is_floating_point():
        raise ValueError(f"layer {name}: {part} must be floating-point numbers; got {tensor.dtype}.")
    if not tensor.numel():
        raise ValueError(f"layer {name}: {part} is empty, of shape {tuple(tensor.shape)}.")
    if tensor.element_size() == 1:  # 8-bit floats: half precision holds them all but the scales' own type
        return tensor.to(torch.float32 if tensor.dtype == torch.float8_e8m0fnu else torch.float16)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _check_finite(name: str, parts: Mapping[str, Tensor]) -> None:
    for part, tensor in parts.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise ValueError(
                f"Layer {name}: {bad} of the {tensor.numel()} numbers of its {part} are NaN or infinite."
            )
