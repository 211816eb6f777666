"""Parameters that are in no layer's formula: changed copies take their place while the model runs.

A block's own parameters, RMS norms that fused kernels read, norms of a framework's own classes and embeddings take
part in what a model does in ways that are its own. A change of one acts by having the changed parameter in the
module, by pointer, for the time of one evaluation. It has one strength for the whole batch then; batch entries that
differ are for evaluations of their own.
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
from .dense_hooks import DenseCache
from .layer_kinds import has_formula
from .module_changes import ModuleChange, ModuleChanges, apply_changes, of_parameter, parameters_of
from .parameters import ParameterAccess, own_parameter
from .strengths import differing

_ABSENT = object()


def needs_swap(module: nn.Module, changes: ModuleChanges) -> bool:
    """Return True if one of these changes of a module is of a parameter that is in no formula."""
    return any(not has_formula(module, parameter) for _, change in changes for parameter in parameters_of(change))


def changes_by_formula(module: nn.Module, changes: ModuleChanges) -> ModuleChanges:
    """Return those of a module's changes, in order, that act by the formula of its layer."""
    known: list[tuple[int, ModuleChange]] = []
    for index, change in changes:
        parameters = [p for p in parameters_of(change) if has_formula(module, p)]
        if isinstance(change, Dense) and parameters:
            change = Dense({parameter: change.differences[parameter] for parameter in parameters})
        if parameters:
            known.append((index, change))
    return tuple(known)


@dataclass(eq=False)
class _Swapped:
    """One parameter to be swapped: whose it is, and what acts on it. layer: the module's name in messages.

    own: the module's own parameter, as it was when something was made from it.
    """

    module: nn.Module
    parameter: str
    layer: str
    changes: ModuleChanges
    access: ParameterAccess
    own: weakref.ref[Tensor] | None = None

    @property
    def learning(self) -> bool:
        """True if gradients are to reach its changes."""
        dense = (change for _, change in self.changes if isinstance(change, Dense))
        return torch.is_grad_enabled() and any(change.differences[self.parameter].requires_grad for change in dense)

    # Tensors made in inference mode could not be saved for backward, should the model be trained on
    @torch.inference_mode(False)
    def changed(self, strengths: Tensor) -> Tensor:
        """Return the parameter with its changes at these strengths, (sliders,)."""
        own = own_parameter(self.module, self.parameter)
        with torch.set_grad_enabled(self.learning):
            start = self.access.value(self.module, self.parameter, own.device).clone()
            return apply_changes(start, self.parameter, self.changes, strengths, self.layer).to(_wide(own.dtype))

    def function_at_use(self, strengths: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that changes the parameter each time it is used."""

        def change(weight: Tensor) -> Tensor:
            start = weight.to(torch.float32, copy=True)  # the one that is given may be the module's own
            return apply_changes(start, self.parameter, self.changes, strengths, self.layer).to(_wide(weight.dtype))

        return change


class ParameterSwap:
    """The parameters of a model's layers that are swapped while changes of them act.

    layers: (module, name in messages, changes). cache: keeps the changed parameters, at the strengths used last.
    parameters: how the model's parameters are read. bypassed: layers that are read without being run, whose formulas
    are of no use.
    sliders: those with changes of such parameters.
    """

    def __init__(
        self,
        layers: Sequence[tuple[nn.Module, str, ModuleChanges]],
        cache: DenseCache,
        parameters: ParameterAccess,
        bypassed: frozenset[nn.Module] = frozenset(),
    ) -> None:
        self._cache, self._access, self.bypassed = cache, parameters, bypassed
        self._swapped = [
            _Swapped(module, parameter, name, of_parameter(parameter, changes), parameters)
            for module, name, changes in layers
            for parameter in dict.fromkeys(p for _, change in changes for p in parameters_of(change))
            if module in bypassed or not has_formula(module, parameter)
        ]
        self.sliders = frozenset(index for each in self._swapped for index, _ in each.changes)

    def check(self, strengths: Tensor) -> None:
        """Raise ValueError, naming the layer, if strengths, (B, sliders), differ between batch entries."""
        different = differing(strengths)
        if different.isdisjoint(self.sliders):
            return
        first = next(s for s in self._swapped if not different.isdisjoint(index for index, _ in s.changes))
        raise ValueError(
            f"Layer {first.layer} is a {type(first.module).__name__}: the change of its {first.parameter} cannot "
            "differ between the batch entries of one evaluation."
        )

    @contextmanager
    def acting(self, strengths: Tensor) -> Iterator[None]:
        """Let the changes act at these strengths, (sliders,), within the block; the model has its own back after it.

        Raises ValueError, naming the layer, if a change does not fit.
        """
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for each in self._swapped:
                at = tuple((index, float(strengths[index])) for index, _ in each.changes if strengths[index])
                if not at:
                    continue
                holder, name, value = self._replacement(each, at, strengths)
                replaced.append((holder, name, holder.get(name, _ABSENT)))
                holder[name] = value
            yield
        finally:
            for holder, name, own in reversed(replaced):
                if own is _ABSENT:
                    del holder[name]
                else:
                    holder[name] = own

    def _replacement(
        self, each: _Swapped, at: tuple[tuple[int, float], ...], strengths: Tensor
    ) -> tuple[dict[str, Any], str, Any]:
        """(where, under which name, what) is put in place while the changes act."""
        if functions := self._access.functions_at_use(each.module, each.parameter):
            # The parameter itself is copied to where it is used, or is changed there: it must stay what it is
            before = getattr(each.module, functions, None) or ()
            return vars(each.module), functions, [*before, each.function_at_use(strengths)]
        own = own_parameter(each.module, each.parameter)
        if each.learning:
            return each.module._parameters, each.parameter, each.changed(strengths)
        if each.own is None or each.own() is not own:
            self._cache.forget(each)
            each.own = weakref.ref(own)
        # Merged weights are written over where they are; tensors of inference mode do not count how often they are
        version = None if own.is_inference() else own._version
        changed = self._cache.get(each, (at, own.device, version), lambda: each.changed(strengths))
        return each.module._parameters, each.parameter, nn.Parameter(changed, requires_grad=False)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype for a changed parameter: its own, or float32 where that is for storage only, as float8."""
    return dtype if dtype.itemsize > 1 else torch.float32
