"""Reads and writes the parameters of ComfyUI's modules: packed, paged in, or patched each time that they are used."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ..sliders.equation.layer_kinds import weight_shape
from ..sliders.equation.parameters import ParameterAccess, own_parameter


class ComfyParameters(ParameterAccess):
    """Access to the parameters of ComfyUI's modules, see `comfy.ops.CastWeightBiasOp`."""

    def value(self, module: nn.Module, parameter: str, device: torch.device) -> Tensor:
        """Return a parameter as it acts, in float32: dequantised, and with ComfyUI's functions applied to it."""
        own = own_parameter(module, parameter).detach()
        if type(own) is not Tensor and hasattr(own, "dequantize"):
            own = own.dequantize()
        own = own.to(device, torch.float32)
        paged = getattr(module, f"{parameter}_lowvram_function", None)  # the patches of a weight that is paged in
        functions = getattr(module, f"{parameter}_function", None) or ()
        for function in functions if paged is None else (paged, *functions):
            own = function(own.clone())
        return own

    def functions_at_use(self, module: nn.Module, parameter: str) -> str | None:
        """Return "weight_function" or "bias_function" if ComfyUI pages the parameter in, or changes it, at use."""
        if parameter not in ("weight", "bias"):
            return None
        names = (f"{parameter}_function", f"{parameter}_lowvram_function")
        at_use = hasattr(module, "_v") or any(getattr(module, name, None) for name in names)
        return names[0] if at_use else None


COMFY_PARAMETERS = ComfyParameters()


def weight_rms(module: nn.Module, device: torch.device) -> float:
    """Return the root mean square of a layer's weight; 0 if its numbers cannot be read.

    So it is where other packs keep a quantised weight as packed bytes, which they alone unpack.
    """
    own = module._parameters.get("weight")
    if own is None or not own.is_floating_point():
        return 0.0
    weight = COMFY_PARAMETERS.value(module, "weight", device)
    if weight.numel() != prod(weight_shape(module, "")):
        return 0.0
    return float(torch.linalg.vector_norm(weight)) / weight.numel() ** 0.5
