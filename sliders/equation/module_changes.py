"""Changes of a module's parameters, and what several of them in a row make of one parameter.

Low-rank and dense changes add up. A patch is worked out on the whole of a parameter. Some patches (DoRA, OFT, BOFT,
GLoRA) depend on the weight that they change: these act on what the changes before them have made of it, in the order
of the stack and each at its strength, as ComfyUI's own weight patches do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..changes import Dense, LowRank
from .layer_kinds import flat_weight


class Patch(ABC):
    """A change of one parameter of a module: W' = changed(W, strength).

    parameter: its name within the module. relative: True if the change depends on the weight that it changes.
    linear: True if twice the strength is twice the change.
    """

    parameter: str
    relative: bool
    linear: bool

    @abstractmethod
    def changed(self, weight: Tensor, strength: float, name: str) -> Tensor:
        """Return the float32 weight after the change; the one that is given may be written to.

        Raises ValueError, naming the layer, if the change does not fit.
        """

    def difference(self, own: Tensor, name: str) -> Tensor:
        """Return what it adds to a float32 weight, alone and at strength 1."""
        if not self.relative:
            return self.changed(torch.zeros_like(own), 1.0, name)
        return self.changed(own.clone(), 1.0, name).sub_(own)


ModuleChange = LowRank | Dense | Patch
ModuleChanges = Sequence[tuple[int, ModuleChange]]  # each with the index of its slider in the stack


def parameters_of(change: ModuleChange) -> tuple[str, ...]:
    """Return the names of the parameters that a change is of."""
    if isinstance(change, LowRank):
        return ("weight",)
    return (change.parameter,) if isinstance(change, Patch) else tuple(change.differences)


def of_parameter(parameter: str, changes: ModuleChanges) -> ModuleChanges:
    """Return those of the changes that are of this parameter."""
    return tuple((index, change) for index, change in changes if parameter in parameters_of(change))


def dependent_parameters(changes: ModuleChanges) -> tuple[str, ...]:
    """Return the parameters whose changes do not add up: one depends on others, or is not linear in its strength."""
    relative = {c.parameter: c for _, c in changes if isinstance(c, Patch) and c.relative}
    return tuple(p for p in sorted(relative) if len(of_parameter(p, changes)) > 1 or not relative[p].linear)


def apply_changes(weight: Tensor, parameter: str, changes: ModuleChanges, strengths: Tensor, name: str) -> Tensor:
    """Apply changes to a float32 weight, one after the other; the weight itself is written to.

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
