"""How one merged parameter is made: W0 + B diag(s) A, with one rounding, and updated when strengths change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..changes import LowRank
from .layer_kinds import flat_weight
from .module_changes import ModuleChanges, Patch, apply_changes, of_parameter, parameters_of
from .parameters import ParameterAccess

# What can be merged. Every update of a merged weight rounds it once more, by half a unit in the last place of what it
# was or of what it becomes. After so many it is built anew from the layer's own weight: the error stays below
# (updates + 1) / 2 units of the largest that the weight has been since.
UPDATES = {torch.float32: 64, torch.float16: 3, torch.bfloat16: 3}
# Coming back from strengths so many times larger it is built anew at once, or that size's rounding would stay
FURTHEST = {torch.float32: 64.0, torch.float16: 2.0, torch.bfloat16: 2.0}
_SMALL = 0.5  # strengths below are as this one: the model's weight, not the slider's change, has the size there
Layers = Sequence[tuple[nn.Module, str, ModuleChanges]]  # modules, their names in messages, and what acts on them


@dataclass
class MergedParameter:
    """One parameter to merge changes into: whose it is, and what acts on it.

    down, up: the low-rank changes concatenated, (sum of ranks, in * kernel) and (out, sum of ranks).
    sliders: the slider of each of their channels, (sum of ranks,).
    others: the changes that are no such products; they are worked out while the weight is built, and not kept.
    dependent: all of the changes, in order, if one depends on those before it; else empty.
    layer: the module's name in messages. access: how the model's parameters are read.
    """

    module: nn.Module
    name: str
    layer: str
    down: Tensor | None
    up: Tensor | None
    sliders: Tensor
    others: ModuleChanges
    dependent: ModuleChanges
    access: ParameterAccess

    @property
    def own(self) -> nn.Parameter:
        """The layer's own parameter, as long as no merged one is in its place."""
        own = self.module._parameters[self.name]
        assert own is not None  # `can_merge` has seen to it
        return own


def merged_parameters(
    module: nn.Module, layer: str, changes: ModuleChanges, access: ParameterAccess
) -> Iterator[MergedParameter]:
    """Yield one for each parameter of a layer that the changes are of."""
    for name in sorted(_names(changes)):
        own = of_parameter(name, changes)
        if any(isinstance(c, Patch) and c.relative for _, c in own):
            none = torch.tensor([], dtype=torch.long)
            yield MergedParameter(module, name, layer, None, None, none, (), own, access)
            continue
        low_rank = [(i, c) for i, c in own if isinstance(c, LowRank)]
        others = tuple((i, c) for i, c in own if not isinstance(c, LowRank))
        sliders = torch.tensor([i for i, c in low_rank for _ in range(c.rank)], dtype=torch.long)
        down = torch.cat([c.down.detach().flatten(1) for _, c in low_rank]) if low_rank else None
        up = torch.cat([c.up.detach().flatten(1) for _, c in low_rank], dim=1) if low_rank else None
        yield MergedParameter(module, name, layer, down, up, sliders, others, (), access)


def comes_from_far(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Return True if a strength, of (sliders,), has become so small that the rounding before it counts."""
    return bool((before.abs() > FURTHEST[dtype] * after.abs().clamp(min=_SMALL)).any())


def bytes_needed(layers: Layers) -> int:
    """Return the memory that one set of merged weights of these layers takes."""
    return sum(own.numel() * own.element_size() for own in _touched(layers))


def bytes_to_build(layers: Layers) -> int:
    """Return the memory that building them takes beside: the sliders' products, and one weight in float32."""
    products = 0
    for module, _, changes in layers:
        for _, change in changes:
            weight = module._parameters.get("weight")
            if isinstance(change, LowRank) and weight is not None:
                size = weight.element_size()
                products += sum(t.numel() * max(t.element_size(), size) for t in (change.down, change.up))
    singles = (4 * own.numel() for own in _touched(layers) if own.dtype != torch.float32)
    return products + max(singles, default=0)


def can_merge(layers: Layers) -> bool:
    """Return True if every parameter that these changes are of is a plain floating-point tensor of its layer."""
    for module, _, changes in layers:
        for name in _names(changes):
            weight = module._parameters.get(name)
            if weight is None or type(weight.data) is not Tensor or weight.dtype not in UPDATES:
                return False
    return True


def build(parameter: MergedParameter, kept: nn.Parameter | None, strengths: Tensor) -> nn.Parameter:
    """Make W0 + B diag(s) A, with one rounding; or apply the changes one by one if they do not add up.

    kept: a merged weight to be written over, if it has the right form. strengths: (sliders,).
    """
    own, merged = parameter.own, kept
    if merged is None or (merged.shape, merged.dtype, merged.device) != (own.shape, own.dtype, own.device):
        merged = nn.Parameter(torch.empty_like(own), requires_grad=False)
    if parameter.dependent:
        start = parameter.access.value(parameter.module, parameter.name, own.device)
        start = start.clone() if start.data_ptr() == own.data_ptr() else start
        merged.copy_(apply_changes(start, parameter.name, parameter.dependent, strengths, parameter.layer))
    else:
        _add(parameter, merged, own.detach(), strengths, strengths[parameter.sliders] != 0)
    return merged


def update(parameter: MergedParameter, merged: nn.Parameter, strengths: Tensor, before: Tensor) -> None:
    """Bring a merged weight from strengths to others: merged <- merged + B diag(ds) A.

    strengths, before: (sliders,).
    """
    by = strengths - before
    if any(by[i] for i, _ in parameter.dependent):
        build(parameter, merged, strengths)
        return
    active = by[parameter.sliders] != 0
    if active.any() or any(by[i] for i, _ in parameter.others):
        _add(parameter, merged, merged, by, active)


def _touched(layers: Layers) -> list[Tensor]:
    """Return the parameters that these changes are of, each once."""
    found = {(m, n): m._parameters.get(n) for m, _, changes in layers for n in _names(changes)}
    return [own for own in found.values() if own is not None]


def _names(changes: ModuleChanges) -> set[str]:
    return {name for _, change in changes for name in parameters_of(change)}


def _add(parameter: MergedParameter, merged: Tensor, base: Tensor, strengths: Tensor, active: Tensor) -> None:
    """merged <- base + B diag(s) A over the active channels, plus what the other changes add."""
    # Half precision is added up in float32 and rounded once
    single = merged.dtype == torch.float32
    total = merged if single else base.float()
    if single and base is not merged:
        total.copy_(base)
    if active.any():
        _add_products(parameter, total, strengths, active, single)
    apply_changes(total, parameter.name, parameter.others, strengths, parameter.layer)
    if total is not merged:
        merged.copy_(total)


def _add_products(parameter: MergedParameter, total: Tensor, strengths: Tensor, active: Tensor, single: bool) -> None:
    """total <- total + B diag(s) A over the active channels. single: True if the model is in float32."""
    down, up = parameter.down, parameter.up
    assert down is not None and up is not None  # or no channel could be active
    if down.device != total.device or single:
        dtype = torch.float32 if single else down.dtype
        down, up = (t.to(total.device, dtype) for t in (down, up))
        parameter.down, parameter.up = down, up
    if not active.all():
        chosen = torch.nonzero(active).flatten().to(total.device)
        down, up = down[chosen], up[:, chosen]
    s = strengths[parameter.sliders[active]].to(total.device)
    flat_weight(total).addmm_(up.float() * s, down.float())
