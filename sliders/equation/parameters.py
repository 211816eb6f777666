"""How the equation reads the parameters of a model's modules.

Plain PyTorch modules use their parameters as they are. A framework may keep them packed, page them in, or change them
at each use; it says so in a subclass, which is handed to `SliderHooks` and `MergedWeights`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ParameterAccess:
    """Access to the parameters of plain PyTorch modules; the base class of any other."""

    def value(self, module: nn.Module, parameter: str, device: torch.device) -> Tensor:
        """Return a parameter as it acts in a forward pass, in float32 on a device.

        It may be the module's own tensor, and must not be written to.
        """
        return own_parameter(module, parameter).detach().to(device, torch.float32)

    def functions_at_use(self, module: nn.Module, parameter: str) -> str | None:
        """Return the attribute that lists the functions a module puts this parameter through at each use.

        None if the module uses the parameter itself, so that another tensor can take its place.
        """
        return None


def own_parameter(module: nn.Module, parameter: str) -> Tensor:
    """Return a parameter of a module by its name. Raises ValueError if the module has none of that name."""
    own = module._parameters.get(parameter)
    if own is None:
        raise ValueError(f"A {type(module).__name__} has no parameter {parameter}.")
    return own
