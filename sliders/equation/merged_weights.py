"""The equation with one set of strengths for the whole batch: W0 + B diag(s) A, in tensors of our own.

The merged weights take the place of the layers' own by pointer while a block runs. The layers' own are never written
to, so nothing has to be undone, and closing a gate is leaving the pointers alone. Where gates open at different
times, there may be a set of merged weights for each interval of sampling between them: then opening one is swapping
pointers too.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .parameters import ParameterAccess
from .weight_updates import UPDATES, Layers, MergedParameter, build, comes_from_far, merged_parameters, update


@dataclass
class _Copy:
    """A merged weight. own: the layer's own weight, as it was when `merged` was built from it."""

    own: weakref.ref[nn.Parameter] | None = None
    merged: nn.Parameter | None = None


class _Set:
    """A merged weight for each weight that the sliders act on, all at the same strengths."""

    def __init__(self, copies: list[_Copy]) -> None:
        self.copies = copies
        self.strengths: Tensor | None = None  # (sliders,); None if they are not known
        self._updates = 0
        self._version: object = None

    def bring_to(self, strengths: Tensor, version: object, parameters: list[MergedParameter]) -> None:
        """Make the merged weights those at these strengths: by an update if few have changed, or built anew."""
        before, self.strengths = self.strengths, None  # unknown, should building be cut off
        rebuild = before is None or version != self._version
        self._version = version
        if before is not None and not rebuild and not torch.equal(before, strengths):
            coarsest = min(
                (c.merged.dtype for c in self.copies if c.merged is not None), key=lambda dtype: UPDATES[dtype]
            )
            changed = torch.nonzero(before != strengths).flatten()
            rebuild = self._updates >= UPDATES[coarsest] or 2 * len(changed) > int(strengths.count_nonzero())
            rebuild = rebuild or comes_from_far(before, strengths, coarsest)
            self._updates = 0 if rebuild else self._updates + 1
        for parameter, copy in zip(parameters, self.copies, strict=True):
            own = parameter.own
            if rebuild or before is None or not _is_copy_of(copy, own):
                copy.merged = build(parameter, copy.merged, strengths)
                copy.own = weakref.ref(own)
            elif copy.merged is not None and not torch.equal(before, strengths):
                update(parameter, copy.merged, strengths, before)
        self.strengths = strengths


def _is_copy_of(copy: _Copy, own: nn.Parameter) -> bool:
    return copy.own is not None and copy.own() is own and copy.merged is not None and copy.merged.device == own.device


class MergedWeights:
    """Merged weights of one model for one list of sliders at a time.

    What they take beyond the model is `max_sets` copies of the weights that sliders act on, one unless it is set
    otherwise, whatever the number of strengths and stacks they serve one after the other.
    uses: the evaluations since the present sliders were prepared.
    """

    def __init__(self, parameters: ParameterAccess | None = None) -> None:
        self._access = parameters or ParameterAccess()
        self._layers: Layers | None = None
        self._parameters: list[MergedParameter] = []
        self._sets: OrderedDict[tuple[bool, ...], _Set] = OrderedDict()
        self._spare: list[_Copy] = []
        self.max_sets, self.uses = 1, 0

    def is_for(self, layers: object) -> bool:
        """Return True if it was prepared for this list of layers and changes."""
        return self._layers is layers

    def is_ready_for(self, strengths: Tensor) -> bool:
        """Return True if there is a set for the sliders that act at these strengths, (sliders,)."""
        return _acting_at(strengths) in self._sets

    @property
    def set_count(self) -> int:
        """The number of sets of merged weights that are there."""
        return len(self._sets)

    def prepare(self, layers: Layers) -> None:
        """Make room for these sliders' merged weights. Nothing is computed before they are needed."""
        if self.is_for(layers):
            return
        spare = {}
        if self._sets:  # one set is written over, any others are given back
            copies = next(reversed(self._sets.values())).copies
            spare = {(p.module, p.name): copy.merged for p, copy in zip(self._parameters, copies, strict=True)}
        self._parameters = [p for layer in layers for p in merged_parameters(*layer, self._access)]
        self._sets = OrderedDict()
        self._spare = [_Copy(merged=spare.get((p.module, p.name))) for p in self._parameters]
        self._layers, self.uses, self.max_sets = layers, 0, 1

    @property
    def tensors(self) -> list[nn.Parameter]:
        """The merged weights that are there."""
        copies = [copy for each in self._sets.values() for copy in each.copies] + self._spare
        return [copy.merged for copy in copies if copy.merged is not None]

    @property
    def size_bytes(self) -> int:
        """The memory that merged weights take now."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def products_bytes(self) -> int:
        """The memory of what merged weights are made from."""
        products = (t for p in self._parameters for t in (p.down, p.up) if t is not None)
        return sum(t.numel() * t.element_size() for t in products)

    def drop(self) -> None:
        """Give all memory back."""
        self._layers, self._parameters, self._spare, self.uses = None, [], [], 0
        self._sets = OrderedDict()

    @contextmanager
    def acting(self, strengths: Tensor, version: object = None) -> Iterator[None]:
        """Let the sliders act at these strengths, (sliders,), within the block; nothing is left behind after it.

        version: of the model's own weights; it must change when they are written to in place.
        Raises whatever building raises (out of memory, say) before anything has been put in place.
        """
        if not strengths.any():
            yield
            return
        # A copy: the caller may write to its own tensor, and the set would take itself to be at those strengths
        chosen = self._set_at(strengths.detach().to("cpu", torch.float32, copy=True), version)
        self.uses += 1
        # Unknown until the block has ended well: a run after a failed one is built anew, as on a fresh model
        known = [(each, each.strengths) for each in self._sets.values()]
        for each, _ in known:
            each.strengths = None
        replaced = []
        try:
            for parameter, copy in zip(self._parameters, chosen.copies, strict=True):
                replaced.append((parameter.module._parameters, parameter.name, parameter.own))
                parameter.module._parameters[parameter.name] = copy.merged
            yield
            for each, at in known:
                each.strengths = at
        finally:
            for parameters, name, own in replaced:
                parameters[name] = own

    # Merged weights are ordinary tensors, even where the caller works in inference mode: autograd may keep them
    @torch.inference_mode(False)
    @torch.no_grad()
    def _set_at(self, strengths: Tensor, version: object) -> _Set:
        """Return the set for the sliders that act at these strengths, brought to them."""
        acting = _acting_at(strengths)
        chosen = self._sets.pop(acting, None)
        if chosen is None:
            if self._sets and len(self._sets) >= self.max_sets:
                chosen = self._sets.popitem(last=False)[1]
            else:
                chosen = _Set(self._spare or [_Copy() for _ in self._parameters])
                self._spare = []
        self._sets[acting] = chosen
        chosen.bring_to(strengths, version, self._parameters)
        return chosen


def _acting_at(strengths: Tensor) -> tuple[bool, ...]:
    return tuple((strengths != 0).tolist())
