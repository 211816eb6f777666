"""Parameters that no layer's formula knows: tensors of our own stand in for them while an evaluation runs.

A block's own parameters, norms of the host's own classes and embeddings take part in what a module does in ways that
are the module's own. A change of one acts by having the changed parameter in the module, by pointer, for the time of
one evaluation. It has one strength for all rows then; rows that differ are for evaluations of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..changes import Dense
from .dense_hooks import Shelf
from .layer_kinds import has_formula
from .strengths import differing
from .weight_changes import ModuleChanges, on, own_weight, parameters_of, worked_out

_ABSENT = object()


def needs_swap(module: nn.Module, changes: ModuleChanges) -> bool:
    """Whether one of these changes of a module is of a parameter that no formula knows."""
    return any(not has_formula(module, parameter) for _, change in changes for parameter in parameters_of(change))


def by_formula(module: nn.Module, changes: ModuleChanges) -> ModuleChanges:
    """Those of a module's changes, in order, that act by the formula of its layer."""
    known = []
    for index, change in changes:
        parameters = [p for p in parameters_of(change) if has_formula(module, p)]
        if isinstance(change, Dense) and parameters:
            change = Dense({parameter: change.differences[parameter] for parameter in parameters})
        if parameters:
            known.append((index, change))
    return tuple(known)


@dataclass(eq=False)
class _StandIn:
    """One parameter: whose it is, and what acts on it. layer: the module's name in messages.

    own: the module's own parameter, as it was when something was made from it.
    """

    module: nn.Module
    parameter: str
    layer: str
    changes: ModuleChanges
    own: weakref.ref[Tensor] | None = None

    @property
    def is_cast_at_use(self) -> bool:
        """Whether what acts is not the parameter itself: the host pages it in, or changes it, at use."""
        if self.parameter not in ("weight", "bias"):
            return False
        names = (f"{self.parameter}_function", f"{self.parameter}_lowvram_function")
        return hasattr(self.module, "_v") or any(getattr(self.module, name, None) for name in names)

    # Tensors made in inference mode could not be saved for backward, should the model be trained on
    @torch.inference_mode(False)
    @torch.no_grad()
    def made(self, strengths: Tensor) -> Tensor:
        """The parameter with its changes at these strengths, (sliders,)."""
        own = self.module._parameters[self.parameter]
        start = own_weight(self.module, self.parameter, own.device).clone()
        return worked_out(start, self.parameter, self.changes, strengths, self.layer).to(_wide(own.dtype))

    def at_use(self, strengths: Tensor) -> Callable[[Tensor], Tensor]:
        """What the host is to do to the parameter each time that it is used, after what it does itself."""

        def change(weight: Tensor) -> Tensor:
            start = weight.to(torch.float32, copy=True)  # the one that is given may be the host's own
            return worked_out(start, self.parameter, self.changes, strengths, self.layer).to(_wide(weight.dtype))

        return change


class StandIns:
    """The parameters of a model's layers that need stand-ins.

    layers: (module, name in messages, changes). shelf: keeps the tensors that stand in, at the strengths used last.
    sliders: those with changes of such parameters.
    """

    def __init__(self, layers: Sequence[tuple[nn.Module, str, ModuleChanges]], shelf: Shelf) -> None:
        self._shelf = shelf
        self._all = [
            _StandIn(module, parameter, name, on(parameter, changes))
            for module, name, changes in layers
            for parameter in dict.fromkeys(p for _, change in changes for p in parameters_of(change))
            if not has_formula(module, parameter)
        ]
        self.sliders = frozenset(index for each in self._all for index, _ in each.changes)

    def check(self, strengths: Tensor) -> None:
        """Raise ValueError, naming the layer, where strengths, (rows, sliders), differ between rows."""
        different = differing(strengths)
        if different.isdisjoint(self.sliders):
            return
        first = next(each for each in self._all if not different.isdisjoint(index for index, _ in each.changes))
        raise ValueError(
            f"Layer {first.layer} is a {type(first.module).__name__}: the change of its {first.parameter} cannot "
            "differ between the rows of one evaluation."
        )

    @contextmanager
    def acting(self, strengths: Tensor) -> Iterator[None]:
        """Let the changes act at these strengths, (sliders,), within the block; the model has its own back after it.

        Raises ValueError, naming the layer, if a change does not fit.
        """
        lent: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for each in self._all:
                at = tuple((index, float(strengths[index])) for index, _ in each.changes if strengths[index])
                if not at:
                    continue
                holder, name, instead = self._instead(each, at, strengths)
                lent.append((holder, name, holder.get(name, _ABSENT)))
                holder[name] = instead
            yield
        finally:
            for holder, name, own in reversed(lent):
                if own is _ABSENT:
                    del holder[name]
                else:
                    holder[name] = own

    def _instead(self, each: _StandIn, at: tuple, strengths: Tensor) -> tuple[dict[str, Any], str, Any]:
        """(where, under which name, what) is put in place while the changes act."""
        if each.is_cast_at_use:
            # The host copies the parameter itself to where it pages it in from: that must stay what it is
            name = f"{each.parameter}_function"
            functions = getattr(each.module, name, None) or ()
            return vars(each.module), name, [*functions, each.at_use(strengths)]
        own = each.module._parameters[each.parameter]
        if each.own is None or each.own() is not own:
            self._shelf.forget(each)
            each.own = weakref.ref(own)
        # Merged weights are written over where they are; tensors of inference mode do not count how often they are
        written = None if own.is_inference() else own._version
        made = self._shelf.take(each, (at, own.device, written), lambda: each.made(strengths))
        return each.module._parameters, each.parameter, nn.Parameter(made, requires_grad=False)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A dtype for what changes have made of a parameter: its own, or float32 where that is one of storage alone."""
    return dtype if dtype.itemsize > 1 else torch.float32
