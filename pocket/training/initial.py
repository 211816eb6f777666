"""What ComfyUI's classes need before they can be trained: weights of their own, and norms that keep their input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def initialise(model: nn.Module, generator: torch.Generator, ends: Sequence[str] = ()) -> nn.Module:
    """Set every weight, which ComfyUI leaves unset: normal by fan-in, zero in layers named by one of `ends`."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            std = 0.0 if name.endswith(tuple(ends)) and ends else module.weight[0].numel() ** -0.5
            _normal(module.weight, std, generator)
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, 0.3, generator)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.weight.data.fill_(1.0)
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    return model


def differentiable(encoder: nn.Module) -> nn.Module:
    """Let gradients through ComfyUI's CLIP layers, which add in place to what their norms have kept."""
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    return encoder


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)
