"""Changes that are no product of two: worked out on the whole of a layer's weight, one layer at a time.

Some of them, DoRA, OFT, BOFT and GLoRA, depend on the weight that they change. Such a change acts on what the changes
before it have made of the weight, in the order of the stack and each at its strength, as the stock loader's patches
do: these are then worked out together, and not added up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..changes import Dense, LowRank
from .layer_kinds import flat_weight


class Patch(ABC):
    """A change of one parameter of a module.

    parameter: its name within the module. relative: whether the change depends on the weight that it changes.
    linear: whether twice the strength is twice the change.
    """

    parameter: str
    relative: bool
    linear: bool

    @abstractmethod
    def changed(self, weight: Tensor, strength: float, name: str) -> Tensor:
        """The float32 weight after the change; the one that was given may be written to.

        Raises ValueError, naming the layer, if the change does not fit.
        """

    def difference(self, own: Tensor, name: str) -> Tensor:
        """What it adds to a float32 weight, alone and at strength 1."""
        if not self.relative:
            return self.changed(torch.zeros_like(own), 1.0, name)
        return self.changed(own.clone(), 1.0, name).sub_(own)


ModuleChange = LowRank | Dense | Patch
ModuleChanges = Sequence[tuple[int, ModuleChange]]  # with the index of the slider that each is of


def parameters_of(change: ModuleChange) -> tuple[str, ...]:
    """The names of the parameters that it changes."""
    if isinstance(change, LowRank):
        return ("weight",)
    return (change.parameter,) if isinstance(change, Patch) else tuple(change.differences)


def on(parameter: str, changes: ModuleChanges) -> ModuleChanges:
    """Those of the changes that are of this parameter."""
    return tuple((index, change) for index, change in changes if parameter in parameters_of(change))


def bound_together(changes: ModuleChanges) -> tuple[str, ...]:
    """The parameters whose changes do not add up: one depends on others, or not on its strength alone."""
    relative = {c.parameter for _, c in changes if isinstance(c, Patch) and c.relative}
    return tuple(p for p in sorted(relative) if len(on(p, changes)) > 1 or not on(p, changes)[0][1].linear)


def worked_out(weight: Tensor, parameter: str, changes: ModuleChanges, strengths: Tensor, name: str) -> Tensor:
    """A float32 weight after these changes, one after the other; the weight itself is written to.

    strengths: (sliders,). Raises ValueError, naming the layer, if a change does not fit.
    """
    for index, change in changes:
        strength = float(strengths[index])
        if not strength or parameter not in parameters_of(change):
            continue
        if isinstance(change, LowRank):
            down, up = (t.detach().flatten(1).to(weight) for t in (change.down, change.up))
            flat_weight(weight).addmm_(up, down, alpha=strength)
        elif isinstance(change, Dense):
            weight.add_(change.differences[parameter].to(weight).view_as(weight), alpha=strength)
        elif change.relative:
            weight = change.changed(weight, strength, name)
        else:
            weight.add_(change.difference(weight, name), alpha=strength)
    return weight


def own_weight(module: nn.Module, parameter: str, device: torch.device) -> Tensor:
    """A module's parameter as it acts, in float32 on a device: unpacked, and with what the host does to it in use.

    It may be the module's own tensor, and is not to be written to.
    """
    own = module._parameters[parameter].detach()
    if type(own) is not Tensor and hasattr(own, "dequantize"):
        own = own.dequantize()
    own = own.to(device, torch.float32)
    paged = getattr(module, f"{parameter}_lowvram_function", None)  # the host's patches of a weight that it pages in
    functions = getattr(module, f"{parameter}_function", None) or ()
    for function in functions if paged is None else (paged, *functions):
        own = function(own.clone())
    return own
