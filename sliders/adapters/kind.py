"""The contract of one kind of adapter, and the names of the tensors that adapters are made of.

A layer's tensors, its parts, are named by the endings that ComfyUI's LoRA loader reads, so that they can be handed to
it as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
ALPHA, DORA, DIFF, BIAS = "alpha", "dora_scale", "diff", "diff_b"
# What ComfyUI's loader does not read: a bias in another form, and DoRA's magnitudes by another equation, see `lora`
PEFT_BIAS, PEFT_MAGNITUDE = "lora_B.bias", "lora_magnitude_vector"
MAGNITUDES = (DORA, PEFT_MAGNITUDE)
Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]


class AdapterKind(ABC):
    """One kind of change of a weight W, (out, in) or (out, in, *kernel), that is given by a few tensors.

    At strength s it makes of the weight

        W' = W + s * delta(parts)          or, if it is `relative`,          W' = change(W, parts, s)

    Each kind states its equation at the top of its module. It knows which parts it is made of, whether they fit each
    other and the weight they are for, and how they are scaled; it multiplies nothing out, since a few kilobytes of
    factors can stand for gigabytes. ComfyUI's `weight_adapter` multiplies.

    name: as reports and messages call it.
    own_parts: the parts that tell the kind; one of them suffices. further_parts: what may stand beside them.
    relative: True if the change depends on the weight that it changes.
    linear: True if twice the strength is twice the change.
    takes_bias: True if a difference of the layer's bias may stand beside the parts.
    """

    name: str
    own_parts: tuple[str, ...]
    further_parts: tuple[str, ...] = ()
    relative: bool = False
    linear: bool = True
    takes_bias: bool = True

    @property
    def known_parts(self) -> frozenset[str]:
        """All parts that a layer of this kind may have."""
        return frozenset((*self.own_parts, *self.further_parts, *((BIAS,) if self.takes_bias else ())))

    @abstractmethod
    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        """Return the parts as ComfyUI's loader reads them.

        layer: its name in messages. Raises ValueError if a part is missing or the parts do not fit each other.
        """

    @abstractmethod
    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        """Return the shape of the change, from the shapes of its parts; None if it changes no weight, only a bias.

        weight: the shape of the weight it is for.
        """

    def fits(self, delta: Shape, weight: Shape) -> bool:
        """Return True if a change of one shape can be added to a weight of another.

        Products are reshaped: a linear layer and a 1x1 convolution hold the same numbers in the same order.
        """
        return bool(weight) and delta[0] == weight[0] and prod(delta[1:]) == prod(weight[1:])

    def takes(self, shapes: Mapping[str, Shape], weight: Shape) -> bool:
        """Return True if a relative change can be made of a weight of this shape, beyond what `delta_shape` says."""
        return True

    def rank(self, parts: Parts) -> int:
        """Return the rank of its product, or 0 if it has none."""
        return 0

    def alpha_rank(self, parts: Parts) -> int:
        """Return what alpha is divided by, or 0 if alpha does not scale the change."""
        return self.rank(parts)

    def scaled(self, parts: Parts, factor: float) -> dict[str, Tensor] | None:
        """Return parts that are the change times a factor, or None if no parts of this kind are that.

        The factor goes into alpha.
        """
        scaled = dict(parts)
        if rank := self.alpha_rank(parts):
            alpha = parts[ALPHA].item() if ALPHA in parts else rank
            scaled[ALPHA] = torch.tensor(alpha * factor, dtype=torch.float32)
        return scaled

    def described(self, parts: Parts) -> str:
        """Return what a layer with these parts is called, such as "LoKr with a bias"."""
        return f"{self.name} with a bias" if self.takes_bias and BIAS in parts else self.name


def require(layer: str, parts: Parts, wanted: tuple[str, ...], kind: str) -> None:
    """Raise ValueError, naming the layer, unless all the wanted parts are there."""
    if missing := [part for part in wanted if part not in parts]:
        raise ValueError(f"layer {layer} has {', '.join(parts)} but no {missing[0]}; {kind} needs both.")


def require_fit(layer: str, fits: bool, kind: str, parts: Parts) -> None:
    """Raise ValueError, naming the layer and the shapes of its parts, unless they fit."""
    if not fits:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items() if tensor.ndim)
        raise ValueError(f"layer {layer}: the parts of its {kind} do not fit each other: {shapes}.")


def scaled_exactly(tensor: Tensor, factor: float) -> Tensor:
    """Return a tensor times a factor, in its own precision if that loses nothing, else in float32."""
    return tensor if factor == 1.0 else narrowed(tensor.float() * factor, tensor.dtype)


def narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float32 tensor in a narrower dtype if that loses nothing, as with scales that are powers of two."""
    narrow = exact.to(dtype)
    return narrow if torch.equal(narrow.float(), exact) else exact
