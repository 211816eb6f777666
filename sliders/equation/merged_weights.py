"""The equation with one set of strengths for all rows: W0 + B diag(s) A, in tensors of our own.

The merged weights stand in for the layers' own by pointer while a block runs. The layers' own are never written
to, so nothing has to be undone, and closing a gate is leaving the pointers alone. Where gates open at different
times, there may be a set of merged weights for each part of sampling between them: then opening one is swapping
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

from .weight_updates import UPDATES, Layers, Merging, build, change_by, comes_from_far, mergings_of


@dataclass
class _Copy:
    """A merged weight. own: the layer's own weight, as it was when `merged` was built from it."""

    own: weakref.ref | None = None
    merged: nn.Parameter | None = None


class _Set:
    """A merged weight for each weight that the sliders act on, all at the same strengths."""

    def __init__(self, copies: list[_Copy]) -> None:
        self.copies = copies
        self.strengths: Tensor | None = None  # (sliders,); None where they are not known
        self._updates = 0
        self._version: object = None

    def bring_to(self, strengths: Tensor, version: object, mergings: list[Merging]) -> None:
        """Let the merged weights be those at these strengths: by an update if few have changed, or built anew."""
        before, self.strengths = self.strengths, None  # unknown, should building be cut off
        rebuild = before is None or version != self._version
        self._version = version
        if not rebuild and not torch.equal(before, strengths):
            coarsest = min((copy.merged.dtype for copy in self.copies), key=UPDATES.get)
            changed = torch.nonzero(before != strengths).flatten()
            rebuild = self._updates >= UPDATES[coarsest] or 2 * len(changed) > int(strengths.count_nonzero())
            rebuild = rebuild or comes_from_far(before, strengths, coarsest)
            self._updates = 0 if rebuild else self._updates + 1
        for merging, copy in zip(mergings, self.copies, strict=True):
            own = merging.own
            if rebuild or copy.own() is not own or copy.merged.device != own.device:
                copy.merged = build(merging, copy.merged, strengths)
                copy.own = weakref.ref(own)
            elif not torch.equal(before, strengths):
                change_by(merging, copy.merged, strengths, before)
        self.strengths = strengths


class MergedWeights:
    """Merged weights of one model for one list of sliders at a time.

    What they take beyond the model is `max_sets` copies of the weights that sliders act on, one unless it is told
    otherwise, whatever the number of strengths and stacks they serve one after the other.
    """

    def __init__(self) -> None:
        self.max_sets = 1
        self.drop()

    def is_for(self, changes: object) -> bool:
        """Whether it was built for this list of layers and changes."""
        return self._changes is changes

    def is_ready_for(self, strengths: Tensor) -> bool:
        """Whether there is a set for the sliders that act at these strengths, (sliders,), to be brought to them."""
        return _acting_at(strengths) in self._sets

    @property
    def set_count(self) -> int:
        return len(self._sets)

    def prepare(self, layers: Layers) -> None:
        """Make room for these sliders' merged weights. Nothing is computed before they are needed."""
        if self.is_for(layers):
            return
        spare = {}
        if self._sets:  # one set is written over, any others are given back
            copies = next(reversed(self._sets.values())).copies
            spare = {(m.module, m.name): copy.merged for m, copy in zip(self._mergings, copies, strict=True)}
        self._mergings = [merging for layer in layers for merging in mergings_of(*layer)]
        self._sets = OrderedDict()
        self._spare = [_Copy(merged=spare.get((m.module, m.name))) for m in self._mergings]
        self._changes, self.uses, self.max_sets = layers, 0, 1

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
        held = (t for m in self._mergings for t in (m.down, m.up) if t is not None)
        return sum(t.numel() * t.element_size() for t in held)

    def drop(self) -> None:
        """Give all memory back."""
        self._mergings: list[Merging] = []
        self._sets: OrderedDict[tuple[bool, ...], _Set] = OrderedDict()
        self._spare: list[_Copy] = []
        self._changes: object = None
        self.uses = 0  # since the present sliders took the place of others

    @contextmanager
    def acting(self, strengths: Tensor, version: object = None) -> Iterator[None]:
        """Let the sliders act at these strengths, (sliders,), within the block; nothing is left behind after it.

        version: of the model's own weights; it must change when they are written to in place.
        Raises whatever building raises (out of memory, say) before anything has been put in place.
        """
        if not strengths.any():
            yield
            return
        chosen = self._set_at(strengths.detach().to("cpu", torch.float32), version)
        self.uses += 1
        # Unknown until the block has ended well: a run after a failed one is built anew, as on a fresh model
        held = [(each, each.strengths) for each in self._sets.values()]
        for each, _ in held:
            each.strengths = None
        lent = []
        try:
            for merging, copy in zip(self._mergings, chosen.copies, strict=True):
                lent.append((merging.module._parameters, merging.name, merging.own))
                merging.module._parameters[merging.name] = copy.merged
            yield
            for each, at in held:
                each.strengths = at
        finally:
            for parameters, name, own in lent:
                parameters[name] = own

    # Merged weights are ordinary tensors, even where the host works in inference mode: autograd may keep them
    @torch.inference_mode(False)
    @torch.no_grad()
    def _set_at(self, strengths: Tensor, version: object) -> _Set:
        """The set for the sliders that act at these strengths, brought to them."""
        acting = _acting_at(strengths)
        chosen = self._sets.pop(acting, None)
        if chosen is None:
            if self._sets and len(self._sets) >= self.max_sets:
                chosen = self._sets.popitem(last=False)[1]
            else:
                chosen = _Set(self._spare or [_Copy() for _ in self._mergings])
                self._spare = []
        self._sets[acting] = chosen
        chosen.bring_to(strengths, version, self._mergings)
        return chosen


def _acting_at(strengths: Tensor) -> tuple[bool, ...]:
    return tuple((strengths != 0).tolist())
