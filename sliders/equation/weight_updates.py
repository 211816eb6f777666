"""How one merged weight is made: W0 + B diag(s) A, with one rounding, and changed when strengths change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..changes import LowRank
from .layer_kinds import flat_weight
from .weight_changes import ModuleChanges, Patch, on, own_weight, parameters_of, worked_out

# What can be merged. Every update of a merged weight rounds it once more, by half a unit in the last place of what it
# was or of what it becomes. After so many it is built anew from the layer's own weight: the error stays below
# (updates + 1) / 2 units of the largest that the weight has been since.
UPDATES = {torch.float32: 64, torch.float16: 3, torch.bfloat16: 3}
# Coming back from strengths so many times larger it is built anew at once, or that size's rounding would stay
FURTHEST = {torch.float32: 64.0, torch.float16: 2.0, torch.bfloat16: 2.0}
_SMALL = 0.5  # strengths below are as this one: the model's weight, not the slider's change, has the size there
Layers = Sequence[tuple[nn.Module, str, ModuleChanges]]


@dataclass
class Merging:
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
    others: ModuleChanges
    bound: ModuleChanges

    @property
    def own(self) -> nn.Parameter:
        """The layer's own weight, as long as no merged one stands in for it."""
        return self.module._parameters[self.name]


def mergings_of(module: nn.Module, layer: str, changes: ModuleChanges) -> Iterator[Merging]:
    """One for each parameter of a layer that the changes touch."""
    for name in sorted(_names(changes)):
        own = on(name, changes)
        if any(isinstance(c, Patch) and c.relative for _, c in own):
            yield Merging(module, name, layer, None, None, torch.tensor([], dtype=torch.long), (), own)
            continue
        low_rank = [(i, c) for i, c in own if isinstance(c, LowRank)]
        others = tuple((i, c) for i, c in own if not isinstance(c, LowRank))
        columns = [i for i, c in low_rank for _ in range(c.rank)]
        down = torch.cat([c.down.detach().flatten(1) for _, c in low_rank]) if low_rank else None
        up = torch.cat([c.up.detach().flatten(1) for _, c in low_rank], dim=1) if low_rank else None
        yield Merging(module, name, layer, down, up, torch.tensor(columns, dtype=torch.long), others, ())


def comes_from_far(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Whether a slider's strength, of (sliders,) each, has become so small that the rounding before it counts."""
    return bool((before.abs() > FURTHEST[dtype] * after.abs().clamp(min=_SMALL)).any())


def bytes_needed(layers: Layers) -> int:
    """The memory that a set of merged weights of these layers takes."""
    return sum(own.numel() * own.element_size() for own in _touched(layers))


def bytes_to_build(layers: Layers) -> int:
    """The memory beside them that making them takes: the sliders' products, and a float32 copy of one weight."""
    products = sum(
        t.numel() * max(t.element_size(), module._parameters["weight"].element_size())
        for module, _, changes in layers
        for _, change in changes
        if isinstance(change, LowRank)
        for t in (change.down, change.up)
    )
    singles = (4 * own.numel() for own in _touched(layers) if own.dtype != torch.float32)
    return products + max(singles, default=0)


def can_merge(layers: Layers) -> bool:
    """Whether every weight that these changes touch is a plain floating-point tensor of its layer's own."""
    for module, _, changes in layers:
        for name in _names(changes):
            weight = module._parameters.get(name)
            if weight is None or type(weight.data) is not Tensor or weight.dtype not in UPDATES:
                return False
    return True


def build(merging: Merging, kept: nn.Parameter | None, strengths: Tensor) -> nn.Parameter:
    """W0 + B diag(s) A, with one rounding; or the changes one after the other where they do not add up.

    kept: a merged weight to be written over, if it has the right form. strengths: (sliders,).
    """
    own, merged = merging.own, kept
    if kept is None or (kept.shape, kept.dtype, kept.device) != (own.shape, own.dtype, own.device):
        merged = nn.Parameter(torch.empty_like(own), requires_grad=False)
    if merging.bound:
        start = own_weight(merging.module, merging.name, own.device)
        start = start.clone() if start.data_ptr() == own.data_ptr() else start
        merged.copy_(worked_out(start, merging.name, merging.bound, strengths, merging.layer))
    else:
        _add(merging, merged, own.detach(), strengths, strengths[merging.columns] != 0)
    return merged


def change_by(merging: Merging, merged: nn.Parameter, strengths: Tensor, before: Tensor) -> None:
    """merged <- merged + B diag(ds) A for the sliders whose strengths have changed."""
    by = strengths - before
    if any(by[i] for i, _ in merging.bound):
        build(merging, merged, strengths)
        return
    active = by[merging.columns] != 0
    if active.any() or any(by[i] for i, _ in merging.others):
        _add(merging, merged, merged, by, active)


def _touched(layers: Layers) -> list[nn.Parameter]:
    """The parameters that these changes touch, each once."""
    touched = {(m, n) for m, _, changes in layers for n in _names(changes) if m._parameters.get(n) is not None}
    return [module._parameters[name] for module, name in touched]


def _names(changes: ModuleChanges) -> set[str]:
    return {name for _, change in changes for name in parameters_of(change)}


def _add(merging: Merging, merged: Tensor, base: Tensor, strengths: Tensor, active: Tensor) -> None:
    """merged <- base + B diag(s) A over the active channels, plus what the other changes add."""
    # Half precision is added up in float32 and rounded once
    single = merged.dtype == torch.float32
    total = merged if single else base.float()
    if single and base is not merged:
        total.copy_(base)
    if active.any():
        _add_products(merging, total, strengths, active, single)
    worked_out(total, merging.name, merging.others, strengths, merging.layer)
    if total is not merged:
        merged.copy_(total)


def _add_products(merging: Merging, total: Tensor, strengths: Tensor, active: Tensor, single: bool) -> None:
    """total <- total + B diag(s) A over the active channels. single: whether the model is in float32."""
    if merging.down.device != total.device or single:
        dtype = torch.float32 if single else merging.down.dtype
        merging.down, merging.up = (t.to(total.device, dtype) for t in (merging.down, merging.up))
    down, up = merging.down, merging.up
    if not active.all():
        chosen = torch.nonzero(active).flatten().to(total.device)
        down, up = down[chosen], up[:, chosen]
    s = strengths[merging.columns[active]].to(total.device)
    flat_weight(total).addmm_(up.float() * s, down.float())
