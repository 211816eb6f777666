"""LoRA, LoCon and DoRA.

LoRA:  W' = W + s * (alpha / rank) * up @ down                                        (arXiv 2106.09685)
LoCon: the same for a convolution, with down = mid * down where there is a `lora_mid` (LyCORIS)
DoRA:  W' = W + s * (m * V / |V| - W),  V = W + (alpha / rank) * up @ down            (arXiv 2402.09353)

|V| is of each output's weights. That is what PEFT and ai-toolkit mean by their magnitudes m (`lora_magnitude_vector`,
`magnitude`). LyCORIS trains its `dora_scale` by the same equation, or with |V| of each input's weights. ComfyUI's
loader, which reads no other magnitudes, does so where there is one for each input; where there is one for each output
it divides by |W| instead. What `dora_scale` does there it does here.

A layer with up and down alone becomes a `LowRank` change; with magnitudes or a bias it stays an adapter. A
`dora_scale` may stand beside LoHa, LoKr and GLoRA as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from .kind import (
    ALPHA,
    BIAS,
    DORA,
    DOWN,
    MID,
    PEFT_BIAS,
    PEFT_MAGNITUDE,
    UP,
    AdapterKind,
    Parts,
    Shape,
    narrowed,
    require,
    require_fit,
    scaled_exactly,
)

# ACE-Step has one of 16. A middle convolution is multiplied out: a hostile one must not take all memory
_LARGEST_KERNEL = 16


class LoRA(AdapterKind):
    name = "LoRA"
    own_parts = (DOWN, UP)
    further_parts = (MID, ALPHA, DORA, PEFT_BIAS, PEFT_MAGNITUDE)

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        require(layer, parts, (DOWN, UP), "a slider layer")
        check_shapes(layer, parts[DOWN], parts[UP])
        parts = dict(parts)
        if MID in parts:
            parts[DOWN] = _with_middle(layer, parts.pop(MID), parts[DOWN])
        out = parts[UP].shape[0]
        if PEFT_BIAS in parts:
            require_fit(layer, BIAS not in parts, "bias", parts)
            # PEFT scales the bias of its up-projection as it scales the product
            parts[BIAS] = scaled_exactly(parts.pop(PEFT_BIAS), alpha_scale(parts))
        if PEFT_MAGNITUDE in parts:
            require_fit(layer, DORA not in parts and parts[PEFT_MAGNITUDE].numel() == out, "DoRA", parts)
            parts[PEFT_MAGNITUDE] = parts[PEFT_MAGNITUDE].flatten()
        if DORA in parts:
            parts[DORA] = _magnitudes(layer, parts)
        if BIAS in parts:
            # those of a transposed convolution come second
            outputs = (out, parts[DOWN].shape[1]) if parts[DOWN].ndim > 2 else (out,)
            fits = parts[BIAS].ndim == 1 and parts[BIAS].shape[0] in outputs
            require_fit(layer, fits, "LoRA with a bias", parts)
        return parts

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        return (shapes[UP][0], *shapes[DOWN][1:])

    def rank(self, parts: Parts) -> int:
        return parts[DOWN].shape[0] if DOWN in parts else 0


def alpha_scale(parts: Parts) -> float:
    """Return alpha / rank of a low-rank product; 1 without an alpha."""
    return parts[ALPHA].item() / parts[DOWN].shape[0] if ALPHA in parts else 1.0


def magnitudes_fit(magnitudes: Shape, weight: Shape) -> bool:
    """Return True if DoRA's magnitudes are one for each output, (out, 1, ...), or for each input, (1, in, 1, ...)."""
    ones = (1,) * (len(weight) - 2)
    return magnitudes in ((weight[0], 1, *ones), (1, *weight[1:2], *ones))


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


def _magnitudes(layer: str, parts: Parts) -> Tensor:
    """DoRA's magnitudes as (out, 1, ...) or (1, in, 1, ...); those of one dimension are of the outputs."""
    magnitudes, out, inner = parts[DORA], parts[UP].shape[0], parts[DOWN].shape[1]
    if magnitudes.ndim == 1:
        magnitudes = magnitudes.reshape(-1, *(1 for _ in parts[DOWN].shape[1:]))
    one_way = magnitudes.ndim >= 2 and magnitudes.numel() == max(magnitudes.shape)
    require_fit(layer, one_way and (magnitudes.shape[0] == out or magnitudes.shape[1] == inner), "DoRA", parts)
    return magnitudes


def _with_middle(layer: str, middle: Tensor, down: Tensor) -> Tensor:
    """Return the down-projection and the convolution after it as one: (rank, in, 1, ...) -> (rank, in, *kernel)."""
    rank, kernel = down.shape[0], middle.shape[2:]
    fits = middle.shape[:2] == (rank, rank) and down.numel() == rank * down.shape[1]
    require_fit(layer, fits and all(size <= _LARGEST_KERNEL for size in kernel), "LoCon", {MID: middle, DOWN: down})
    exact = torch.einsum("om...,mi->oi...", middle.float(), down.flatten(1).float())
    return narrowed(exact, down.dtype)
