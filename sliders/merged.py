"""The equation with one set of strengths for all rows: W0 + B diag(s) A, in tensors of our own.

The merged weights stand in for the layers' own by pointer while a block runs. The layers' own are never written
to, so nothing has to be undone, and closing a gate is leaving the pointers alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import flat_weight
from .slider import LowRank
from .whole import Changes, Patch, on, own_weight, parameters_of, worked_out

# Every update of a merged weight rounds it once more, by half a unit in the last place at most. After so many
# it is built anew from the layer's own weight: the error stays below (updates + 1) / 2 units.
UPDATES = {torch.float32: 64, torch.float16: 3, torch.bfloat16: 3}
Layers = Sequence[tuple[nn.Module, str, Changes]]


@dataclass
class _Weight:
    """One parameter with changes: whose it is, and what acts on it.

    down, up: the low-rank changes concatenated, (sum of ranks, in * kernel) and (out, sum of ranks).
    columns: the slider of each of their channels. others: the changes that are no such product, of which nothing
    is kept: they are worked out while the weight is built. bound: all of the changes, in order, where one depends on
    those before it. layer: its name in messages.
    """

    module: nn.Module
    name: str
    layer: str
    down: Tensor | None
    up: Tensor | None
    columns: Tensor
    others: Changes
    bound: Changes
    own: weakref.ref | None = None  # to the layer's own weight, as it was when `merged` was built from it
    merged: nn.Parameter | None = None


class MergedWeights:
    """Merged weights of one model for one list of sliders at a time.

    There is one set of them, whatever the number of strengths and stacks it serves one after the other: what it
    takes beyond the model is never more than a copy of the weights that sliders act on.
    """

    def __init__(self) -> None:
        self._weights: list[_Weight] = []
        self._strengths: Tensor | None = None  # (sliders,), of what the merged weights hold now
        self._updates = 0
        self._changes: object = None
        self._version: object = None
        self.uses = 0  # since the present sliders took the place of others

    def holds(self, changes: object) -> bool:
        """Whether it was built for this list of layers and changes."""
        return self._changes is changes

    def take(self, layers: Layers) -> None:
        """Make room for these sliders' merged weights. Nothing is computed before they are needed."""
        if self.holds(layers):
            return
        spare = {(w.module, w.name): w.merged for w in self._weights}
        self._weights = [w for module, layer, changes in layers for w in _weights_of(module, layer, changes)]
        for weight in self._weights:
            weight.merged = spare.get((weight.module, weight.name))
        self._changes, self._strengths, self._updates, self.uses = layers, None, 0, 0

    @property
    def size_bytes(self) -> int:
        """The memory that merged weights take now."""
        held = (w.merged for w in self._weights if w.merged is not None)
        return sum(t.numel() * t.element_size() for t in held)

    @property
    def products_bytes(self) -> int:
        """The memory of what merged weights are made from."""
        held = (t for w in self._weights for t in (w.down, w.up) if t is not None)
        return sum(t.numel() * t.element_size() for t in held)

    def drop(self) -> None:
        """Give all memory back."""
        self._weights, self._strengths, self._changes = [], None, None

    @contextmanager
    def acting(self, strengths: Tensor, version: object = None) -> Iterator[None]:
        """Let the sliders act at these strengths, (sliders,), within the block; nothing is left behind after it.

        version: of the model's own weights; it must change when they are written to in place.
        Raises whatever building raises (out of memory, say) before anything has been put in place.
        """
        if not strengths.any():
            yield
            return
        self._bring_to(strengths, version)
        self.uses += 1
        # Unknown until the block has ended well: a run after a failed one is built anew, as on a fresh model
        held, self._strengths = self._strengths, None
        lent = []
        try:
            for weight in self._weights:
                lent.append((weight.module._parameters, weight.name, weight.module._parameters[weight.name]))
                weight.module._parameters[weight.name] = weight.merged
            yield
            self._strengths = held
        finally:
            for parameters, name, own in lent:
                parameters[name] = own

    # Merged weights are ordinary tensors, even where the host works in inference mode: autograd may keep them
    @torch.inference_mode(False)
    @torch.no_grad()
    def _bring_to(self, strengths: Tensor, version: object) -> None:
        strengths = strengths.detach().to("cpu", torch.float32)
        before, self._strengths = self._strengths, None  # unknown, should building be cut off
        rebuild = before is None or version != self._version
        self._version = version
        if not rebuild and not torch.equal(before, strengths):
            limit = min(UPDATES[weight.merged.dtype] for weight in self._weights)
            changed = torch.nonzero(before != strengths).flatten()
            rebuild = self._updates >= limit or 2 * len(changed) > int(strengths.count_nonzero())
            self._updates = 0 if rebuild else self._updates + 1
        for weight in self._weights:
            own = weight.module._parameters[weight.name]
            if rebuild or weight.own() is not own or weight.merged.device != own.device:
                _build(weight, own, strengths)
            elif not torch.equal(before, strengths):
                _update(weight, own, strengths, before)
        self._strengths = strengths


def bytes_needed(layers: Layers) -> int:
    """The memory that merged weights of these layers take."""
    touched = {(m, n) for m, _, changes in layers for n in _names(changes) if m._parameters.get(n) is not None}
    return sum(m._parameters[n].numel() * m._parameters[n].element_size() for m, n in touched)


def can_merge(layers: Layers) -> bool:
    """Whether every weight that these changes touch is a plain floating-point tensor of its layer's own."""
    for module, _, changes in layers:
        for name in _names(changes):
            weight = module._parameters.get(name)
            if weight is None or type(weight.data) is not Tensor or weight.dtype not in UPDATES:
                return False
    return True


def _names(changes: Changes) -> set[str]:
    return {name for _, change in changes for name in parameters_of(change)}


def _weights_of(module: nn.Module, layer: str, changes: Changes) -> Iterator[_Weight]:
    for name in sorted(_names(changes)):
        own = on(name, changes)
        if any(isinstance(c, Patch) and c.relative for _, c in own):
            yield _Weight(module, name, layer, None, None, torch.tensor([], dtype=torch.long), (), own)
            continue
        low_rank = [(i, c) for i, c in own if isinstance(c, LowRank)]
        others = tuple((i, c) for i, c in own if not isinstance(c, LowRank))
        columns = [i for i, c in low_rank for _ in range(c.rank)]
        down = torch.cat([c.down.detach().flatten(1) for _, c in low_rank]) if low_rank else None
        up = torch.cat([c.up.detach().flatten(1) for _, c in low_rank], dim=1) if low_rank else None
        yield _Weight(module, name, layer, down, up, torch.tensor(columns, dtype=torch.long), others, ())


def _build(weight: _Weight, own: nn.Parameter, strengths: Tensor) -> None:
    """merged <- W0 + B diag(s) A, with one rounding; or the changes one after the other where they do not add up."""
    kept = weight.merged
    if kept is None or (kept.shape, kept.dtype, kept.device) != (own.shape, own.dtype, own.device):
        weight.merged = nn.Parameter(torch.empty_like(own), requires_grad=False)
    if weight.bound:
        start = own_weight(weight.module, weight.name, own.device)
        start = start.clone() if start.data_ptr() == own.data_ptr() else start
        weight.merged.copy_(worked_out(start, weight.name, weight.bound, strengths, weight.layer))
    else:
        _add(weight, own.detach(), strengths, strengths[weight.columns] != 0)
    weight.own = weakref.ref(own)


def _update(weight: _Weight, own: nn.Parameter, strengths: Tensor, before: Tensor) -> None:
    """merged <- merged + B diag(ds) A for the sliders whose strengths have changed."""
    by = strengths - before
    if any(by[i] for i, _ in weight.bound):
        _build(weight, own, strengths)
        return
    active = by[weight.columns] != 0
    if active.any() or any(by[i] for i, _ in weight.others):
        _add(weight, weight.merged, by, active)


def _add(weight: _Weight, base: Tensor, strengths: Tensor, active: Tensor) -> None:
    """merged <- base + B diag(s) A over the active channels, plus what the other changes add."""
    merged = weight.merged
    # Half precision is added up in float32 and rounded once
    single = merged.dtype == torch.float32
    total = merged if single else base.float()
    if single and base is not merged:
        total.copy_(base)
    if active.any():
        _add_products(weight, total, strengths, active)
    worked_out(total, weight.name, weight.others, strengths, weight.layer)
    if total is not merged:
        merged.copy_(total)


def _add_products(weight: _Weight, total: Tensor, strengths: Tensor, active: Tensor) -> None:
    """total <- total + B diag(s) A over the active channels."""
    single = weight.merged.dtype == torch.float32
    if weight.down.device != total.device or single:
        dtype = torch.float32 if single else weight.down.dtype
        weight.down, weight.up = (t.to(total.device, dtype) for t in (weight.down, weight.up))
    down, up = weight.down, weight.up
    if not active.all():
        chosen = torch.nonzero(active).flatten().to(total.device)
        down, up = down[chosen], up[:, chosen]
    s = strengths[weight.columns[active]].to(total.device)
    flat_weight(total).addmm_(up.float() * s, down.float())
