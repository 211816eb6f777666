"""What a slider is: a change, low-rank as a rule, of some of a model's layers (arXiv 2311.12092)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .gate import Gate

TEXT_ENCODER_PREFIXES = ("lora_te", "lora_prior_te", "text_encoder", "text_encoders.", "text_encoder_2.")


@dataclass(frozen=True, eq=False)
class LowRank:
    """The low-rank change of one layer's weight: delta = up @ down.

    The LoRA scale alpha / rank is already folded into `up`.
    down: (rank, in), or (rank, in, *kernel) for a convolution.
    up: (out, rank), or (out, rank, 1, ...) for a convolution.
    Raises ValueError where the two do not fit each other.
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
        """Its tensors by their names."""
        return {"down projection": self.down, "up projection": self.up}

    def check(self, name: str) -> None:
        """Raise ValueError naming the layer if its shapes do not fit or a number in it is NaN or infinite."""
        check_shapes(name, self.down, self.up)
        _check_finite(name, self.parts)

    def scaled(self, factor: float) -> LowRank:
        """The change times a factor."""
        return LowRank(self.down, self.up * factor)

    def fitted(self, weight_shape: tuple[int, ...], name: str) -> LowRank:
        """The same change, shaped for a weight of shape (out, in) or (out, in, *kernel).

        A 1x1 convolution and a linear layer hold the same numbers, and files use either form for both.
        Raises ValueError naming the layer and both shapes where the numbers do not fit.
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
        """The change of a whole weight that changes one part of it: zeros everywhere else.

        part: (dimension, start, length) of what this change is for.
        Raises ValueError naming the layer where the numbers do not fit.
        """
        dim, start, length = part
        fitted = self.fitted((*weight_shape[:dim], length, *weight_shape[dim + 1 :]), name)
        side = fitted.up if dim == 0 else fitted.down
        whole = side.new_zeros(*side.shape[:dim], weight_shape[dim], *side.shape[dim + 1 :])
        whole.narrow(dim, start, length).copy_(side)
        return LowRank(fitted.down, whole) if dim == 0 else LowRank(whole, fitted.up)

    @staticmethod
    def fresh(weight_shape: tuple[int, ...], rank: int, generator: torch.Generator | None = None) -> LowRank:
        """An untrained float32 change for a weight of that shape: random down, zero up, so delta is 0."""
        out, *inner = weight_shape
        bound = prod(inner) ** -0.5  # the usual start of a LoRA: uniform with variance 1 / (3 fan_in)
        down = torch.empty(rank, *inner).uniform_(-bound, bound, generator=generator)
        return LowRank(down, torch.zeros(out, rank, *(1 for _ in inner[1:])))


@dataclass(frozen=True, eq=False)
class Adapted:
    """The change of one layer in a form that is not one low-rank product of its weight.

    LoHa, LoKr, DoRA, OFT, BOFT, GLoRA; differences of a weight, a bias or a norm; a low-rank change with a
    bias beside it. What such tensors do to a weight is the host's knowledge; here they are only carried.
    parts: the tensors by the endings of their keys in a file, without the dot: "hada_w1_a", "lokr_w1",
        "lora_up.weight" with "dora_scale", "diff", "diff_b", "w_norm", "alpha", ...
    scale: a factor of the whole change.
    """

    parts: Mapping[str, Tensor]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The rank of its product, or 0 where it has none."""
        for ending, dimension in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
            if ending in self.parts:
                return self.parts[ending].shape[dimension]
        return 0

    def check(self, name: str) -> None:
        """Raise ValueError naming the layer if it has no tensors or a number in them is NaN or infinite."""
        if not self.parts:
            raise ValueError(f"Layer {name} has no weights.")
        _check_finite(name, self.parts)

    def scaled(self, factor: float) -> Adapted:
        """The change times a factor."""
        return Adapted(self.parts, self.scale * factor)


Change = LowRank | Adapted


@dataclass(frozen=True, eq=False)
class Dense:
    """A change of one module's parameters multiplied out.

    differences: by the parameter's name in its module ("weight", "bias", ...), shaped as the parameter.
    """

    differences: Mapping[str, Tensor]

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Its tensors by their names."""
        return self.differences

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return Dense({name: t.to(device, dtype) for name, t in self.differences.items()})


@dataclass(frozen=True)
class SliderInfo:
    """What a slider's file says about it, apart from the weights.

    less, more: labels of the negative and the positive end.
    useful_range: the strengths between which it does what its labels say.
    gate: the part of sampling it is meant to act in.
    recipe: how it was trained, as plain JSON values.
    family: the base model's family, as the host names it ("SD15", "SDXL", "Flux", ...).
    base_model_hash: a hash of the base model's weights, or "".
    source: the file it came from, or "".
    extra: further header fields of the file, by name.
    Raises ValueError if the range is empty or not finite.
    """

    less: str = ""
    more: str = ""
    useful_range: tuple[float, float] = (-1.0, 1.0)
    gate: Gate = Gate()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    base_model_hash: str = ""
    source: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.useful_range
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"A slider's useful range runs from a lower to a higher strength; got {low} to {high}.")


@dataclass(frozen=True, eq=False)
class Slider:
    """A named slider: its changes by the layer names of its file, and what is known about it.

    Raises ValueError, naming the slider, if it has no layers, or a layer's shapes or numbers are bad.
    """

    name: str
    layers: Mapping[str, Change]
    info: SliderInfo = field(default_factory=SliderInfo)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        if not self.layers:
            raise ValueError(f"Slider '{self.name}' has no layers.")
        for name, layer in self.layers.items():
            try:
                layer.check(name)
            except ValueError as error:
                raise ValueError(f"Slider '{self.name}': {error}") from error

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max(layer.rank for layer in self.layers.values())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its layers' names and numbers: equal sliders act equally, whatever file they came from."""
        digest = hashlib.blake2b(digest_size=16)
        for name, layer in sorted(self.layers.items()):
            for part, tensor in layer.parts.items():
                digest.update(f"{name} {part} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            digest.update(str(getattr(layer, "scale", 1.0)).encode())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """The memory its weights take."""
        return sum(t.numel() * t.element_size() for layer in self.layers.values() for t in layer.parts.values())

    @property
    def model_layers(self) -> dict[str, Change]:
        """The layers meant for the diffusion model."""
        return {name: layer for name, layer in self.layers.items() if not name.startswith(TEXT_ENCODER_PREFIXES)}

    @property
    def text_layers(self) -> dict[str, Change]:
        """The layers meant for the text encoders."""
        return {name: layer for name, layer in self.layers.items() if name.startswith(TEXT_ENCODER_PREFIXES)}


def _check_finite(name: str, parts: Mapping[str, Tensor]) -> None:
    for part, tensor in parts.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise ValueError(
                f"Layer {name}: {bad} of the {tensor.numel()} numbers of its {part} are NaN or infinite."
            )


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
