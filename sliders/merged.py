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
from .slider import Dense, LowRank

# Every update of a merged weight rounds it once more, by half a unit in the last place at most. After so many
# it is built anew from the layer's own weight: the error stays below (updates + 1) / 2 units.
UPDATES = {torch.float32: 64, torch.float16: 3, torch.bfloat16: 3}
Changes = Sequence[tuple[int, LowRank | Dense]]


@dataclass
class _Weight:
    """One parameter with changes: whose it is, and what acts on it.

    down, up: the low-rank changes concatenated, (sum of ranks, in * kernel) and (out, sum of ranks).
    columns: the slider of each of their channels. dense: (slider, difference) pairs.
    """

    module: nn.Module
    name: str
    down: Tensor | None
    up: Tensor | None
    columns: Tensor
    dense: tuple[tuple[int, Tensor], ...]
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

    def take(self, layers: Sequence[tuple[nn.Module, str, Changes]]) -> None:
        """Make room for these sliders' merged weights. Nothing is computed before they are needed."""
        if self.holds(layers):
            return
        spare = {(w.module, w.name): w.merged for w in self._weights}
        self._weights = [w for module, _, changes in layers for w in _weights_of(module, changes)]
        for weight in self._weights:
            weight.merged = spare.get((weight.module, weight.name))
        self._changes, self._strengths, self._updates, self.uses = layers, None, 0, 0

    @property
    def size_bytes(self) -> int:
        """The memory that merged weights take now."""
        held = (w.merged for w in self._weights if w.merged is not None)
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
                _update(weight, strengths - before, changed)
        self._strengths = strengths


def bytes_needed(layers: Sequence[tuple[nn.Module, str, Changes]]) -> int:
    """The memory that merged weights of these layers take."""
    touched = {(m, n) for m, _, changes in layers for n in _names(changes) if m._parameters.get(n) is not None}
    return sum(m._parameters[n].numel() * m._parameters[n].element_size() for m, n in touched)


def can_merge(layers: Sequence[tuple[nn.Module, str, Changes]]) -> bool:
    """Whether every weight that these changes touch is a plain floating-point tensor of its layer's own."""
    for module, _, changes in layers:
        for name in _names(changes):
            weight = module._parameters.get(name)
            if weight is None or type(weight.data) is not Tensor or weight.dtype not in UPDATES:
                return False
    return True


def _names(changes: Changes) -> set[str]:
    return {n for _, c in changes for n in (("weight",) if isinstance(c, LowRank) else c.differences)}


def _weights_of(module: nn.Module, changes: Changes) -> Iterator[_Weight]:
    for name in sorted(_names(changes)):
        low_rank = [(i, c) for i, c in changes if isinstance(c, LowRank)] if name == "weight" else []
        dense = tuple((i, c.differences[name]) for i, c in changes if isinstance(c, Dense) and name in c.differences)
        columns = [i for i, c in low_rank for _ in range(c.rank)]
        down = torch.cat([c.down.detach().flatten(1) for _, c in low_rank]) if low_rank else None
        up = torch.cat([c.up.detach().flatten(1) for _, c in low_rank], dim=1) if low_rank else None
        yield _Weight(module, name, down, up, torch.tensor(columns, dtype=torch.long), dense)


def _build(weight: _Weight, own: nn.Parameter, strengths: Tensor) -> None:
    """merged <- W0 + B diag(s) A, with one rounding."""
    kept = weight.merged
    if kept is None or (kept.shape, kept.dtype, kept.device) != (own.shape, own.dtype, own.device):
        weight.merged = nn.Parameter(torch.empty_like(own), requires_grad=False)
    active = strengths[weight.columns] != 0
    _add(weight, own.detach(), strengths, active)
    weight.own = weakref.ref(own)


def _update(weight: _Weight, by: Tensor, changed: Tensor) -> None:
    """merged <- merged + B diag(ds) A for the sliders whose strengths have changed."""
    active = torch.isin(weight.columns, changed)
    if active.any() or any(by[i] for i, _ in weight.dense):
        _add(weight, weight.merged, by, active)


def _add(weight: _Weight, base: Tensor, strengths: Tensor, active: Tensor) -> None:
    """merged <- base + B diag(s) A over the active channels, plus the dense differences."""
    merged = weight.merged
    # Half precision is added up in float32 and rounded once
    single = merged.dtype == torch.float32
    total = merged if single else base.float()
    if single and base is not merged:
        total.copy_(base)
    if active.any():
        if weight.down.device != merged.device or single:
            dtype = torch.float32 if single else weight.down.dtype
            weight.down, weight.up = (t.to(merged.device, dtype) for t in (weight.down, weight.up))
        down, up = weight.down, weight.up
        if not active.all():
            chosen = torch.nonzero(active).flatten().to(merged.device)
            down, up = down[chosen], up[:, chosen]
        s = strengths[weight.columns[active]].to(merged.device)
        flat_weight(total).addmm_(up.float() * s, down.float())
    for slider, difference in weight.dense:
        if strengths[slider]:
            total.add_(difference.to(total).view_as(total), alpha=float(strengths[slider]))
    if total is not merged:
        merged.copy_(total)
