"""The kinds of layers that sliders act on, and the formula of each, with a weight that is not its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def is_linear(module: nn.Module) -> bool:
    """Return True if the module maps (..., in) to (..., out)."""
    # Quantised linear layers need not derive from nn.Linear
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def can_act_on(module: nn.Module) -> bool:
    """Return True if low-rank sliders can act on this module."""
    return is_linear(module) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1)


def weight_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of a layer's weight, (out, in) or (out, in, *kernel), without touching the weight itself.

    Raises ValueError if low-rank sliders cannot act on this kind of layer.
    """
    layer: Any = module  # quantised layers have these numbers, and types of their own
    if is_linear(module):
        return (layer.out_features, layer.in_features)
    if can_act_on(module):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    groups = getattr(module, "groups", 1)
    kind = type(module).__name__ + (f" in {groups} groups" if groups != 1 else "")
    raise ValueError(f"Layer {name} is a {kind}; sliders act on linear layers and ungrouped convolutions only.")


def convolve(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Run the convolution that `module` is with another weight: (b, in, ...) -> (b, channels of the weight, ...)."""
    function = next(f for kind, f in zip(_CONVOLUTIONS, _FUNCTIONS) if isinstance(module, kind))
    layer: Any = module
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return function(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def has_formula(module: nn.Module, parameter: str) -> bool:
    """Return True if `dense_output` knows what a change of this parameter adds to the layer's output.

    An RMS norm has none, although it is linear in its weight: in many models a fused kernel normalises queries and
    keys and reads the norm's weight, and the norm itself, to whose output a change could be added, never runs.
    """
    affine = is_linear(module) or isinstance(module, (*_CONVOLUTIONS, nn.GroupNorm, nn.LayerNorm))
    return parameter in ("weight", "bias") and affine


def dense_output(module: nn.Module, x: Tensor, differences: Mapping[str, Tensor]) -> Tensor:
    """Return the output of a layer with these for its "weight" and "bias", and zeros for the one that is not given.

    All these layers are linear in (weight, bias), so that adding this to the layer's own output is changing both.
    Only for parameters with a formula, see `has_formula`.
    """
    weight, bias = differences.get("weight"), differences.get("bias")
    if weight is None:  # a bias alone is the same everywhere
        bias = differences["bias"]
        channels_last = not isinstance(module, (*_CONVOLUTIONS, nn.GroupNorm))
        return bias if channels_last else bias.reshape(1, -1, *(1 for _ in x.shape[2:]))
    if is_linear(module):
        return F.linear(x, weight, bias)
    if isinstance(module, _CONVOLUTIONS):
        return convolve(module, x, weight, bias)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    raise TypeError(f"A {type(module).__name__} has no formula, see `has_formula`.")


def flat_weight(weight: Tensor) -> Tensor:
    """View a weight (out, in, *kernel) as (out, in * kernel), in the same memory."""
    return weight.view(weight.shape[0], prod(weight.shape[1:]))


def along(s: Tensor, like: Tensor, channel: int | None) -> Tensor:
    """View s, (b, r), so that it scales the channels of `like`; without a channel, (b, 1) scales batch entries."""
    shape = [1] * like.ndim
    shape[0] = s.shape[0]
    if channel is not None:
        shape[channel] = s.shape[1]
    return s.view(shape)
