"""Gradients through layers that fetch their weight anew for every call.

Where ComfyUI pages a model's weights, or casts them to another type, a layer computes with a copy that lies in a
buffer, and the next layer's copy takes its place. Autograd keeps the tensor it has seen for backward, and would find
there whatever lies in the buffer by then; where every layer has a copy of its own, it would keep a second model. Here
nothing is kept of the weight: backward fetches it again, by running the layer once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def refetched(model: nn.Module) -> Iterator[None]:
    """Let such layers store no weight for backward within the block; backward belongs inside as well.

    Layers whose weight stays where it is are left alone.
    """
    layers = [module for module in model.modules() if _fetches(module)]
    own = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = _keeping_no_weight(layer, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, own):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward


def _fetches(module: nn.Module) -> bool:
    """Return True if a layer computes with another tensor than its weight (see `comfy.ops.CastWeightBiasOp`)."""
    if not hasattr(module, "comfy_cast_weights"):
        return False
    return bool(module.comfy_cast_weights or module.weight_function or module.bias_function or hasattr(module, "_v"))


def _keeping_no_weight(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    affine = isinstance(layer, _AFFINE)

    def run(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not (torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad):
            return forward(x, *args, **kwargs)
        return _RunAgain.apply(x, lambda given: forward(given, *args, **kwargs), affine)

    return run


class _RunAgain(torch.autograd.Function):
    """A layer of one input. The gradient of an affine one, W x + b, is the same for every x, which is not stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable[[Tensor], Tensor], affine: bool) -> Tensor:
        ctx.layer, ctx.affine, ctx.like = layer, affine, (x.shape, x.dtype, x.device)
        ctx.save_for_backward(*(() if affine else (x,)))
        return layer(x)  # autograd does not look in here

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.affine:
            shape, dtype, device = ctx.like
            x = torch.zeros((), dtype=dtype, device=device).expand(shape)
        else:
            (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (down,) = torch.autograd.grad(ctx.layer(x), x, gradient)
        return down, None, None
