"""The one equation of the pack, acting on the layers of any PyTorch model by forward hooks.

A layer f on which N sliders act gives, for entry b of a batch at sigma,

    y[b] = f(x)[b] + B ( s[b](sigma) * (A x)[b] )

A: the sliders' down-projections, concatenated (sum of ranks x in). B: their up-projections, concatenated
(out x sum of ranks). s: each slider's strength in batch entry b, repeated over its rank. For a convolution A has the
layer's kernel, stride, padding and dilation, and B is 1x1. `merged_weights` has the equation for strengths that are
the same in all entries.

What is no low-rank product is multiplied out and acts as a layer of its own, see `dense_hooks`. A parameter that is
in no layer's formula, such as a block's own, is swapped while the model runs, see `parameter_swap`, and has one
strength for the whole batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..changes import Dense, LowRank
from .dense_hooks import DenseCache, Hook, patch_hook
from .layer_kinds import along, convolve, dense_output, is_linear, weight_shape
from .module_changes import ModuleChange, ModuleChanges, Patch, dependent_parameters, of_parameter
from .parameter_swap import ParameterSwap, changes_by_formula
from .parameters import ParameterAccess
from .strengths import KEPT_SETS, LayerStrengths, differing


class SliderHooks:
    """The sliders that act on the layers of one model by forward hooks.

    layers: for each module, the (slider index, change) pairs that act on it. Changes whose tensors require gradients
        are read afresh at every call and receive gradients; all others are cast to the layer's dtype and device and
        concatenated once per set of active sliders.
    names: for each module, its name in error messages.
    parameters: how the model's parameters are read.
    Raises ValueError if a module that a low-rank change acts on is neither linear nor an ungrouped convolution,
        or a change does not fit it.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, ModuleChanges],
        names: Mapping[nn.Module, str] | None = None,
        parameters: ParameterAccess | None = None,
    ) -> None:
        names, self._parameters = names or {}, parameters or ParameterAccess()
        self.layers: list[tuple[nn.Module, str, ModuleChanges]] = []
        for module, changes in layers.items():
            name = names.get(module, type(module).__name__)
            self.layers.append((module, name, tuple((i, _fitted(change, module, name)) for i, change in changes)))
        self.has_patches = any(isinstance(c, Patch) for _, _, changes in self.layers for _, c in changes)
        self._kept: OrderedDict[frozenset[int], _ActiveSet] = OrderedDict()
        self._cache = DenseCache()
        self._swap = ParameterSwap(self.layers, self._cache, self._parameters)

    @contextmanager
    def acting(self, strengths: Tensor, room: float | None = inf) -> Iterator[None]:
        """Let the sliders act on the model's layers within the block, and leave no trace after it.

        strengths: (B, sliders). With B = 1 they hold for the whole batch; otherwise each layer's batch must be a
            multiple m * B, and strengths[b] is for m consecutive entries of it.
        Sliders at zero in every entry are left out; where all are, nothing is registered at all. A model with
        gradient checkpointing runs its layers again in backward, so backward then belongs inside the block.
        room: the bytes that changes may take which are multiplied out, beyond those that are kept already; what
            there is no room for is multiplied out anew in every call. None: everything is, and nothing is kept,
            as the layers' own weights change between calls.
        Raises ValueError if changes differ between batch entries that cannot, see `need_separate_evaluations`; and,
        from the layer, if its batch is no multiple of B, or a change does not fit.
        """
        strengths = _one_if_equal(strengths.detach().to("cpu", torch.float32))
        self._swap.check(strengths)
        if self.need_separate_evaluations(strengths):
            raise ValueError(
                "Sliders whose changes do not add up cannot differ between the batch entries of one evaluation."
            )
        active = self._active_set(_active(strengths))
        self._cache.allow(room)
        handles, before = [], active.strengths.set(strengths)
        try:
            for module, hook in active.hooks:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            with self._swap.acting(strengths[0]):
                yield
        finally:
            for handle in handles:
                handle.remove()
            active.strengths.set(before)

    def depend_on_each_other(self, strengths: Tensor) -> bool:
        """Return True if at these strengths, (B, sliders), some changes depend on others and do not just add up."""
        return any(True for _ in self._dependent_sliders(strengths))

    def need_separate_evaluations(self, strengths: Tensor) -> bool:
        """Return True if batch entries with these strengths, (B, sliders), cannot share one evaluation.

        So it is where changes that do not add up, or those of swapped parameters, differ between entries.
        """
        different = differing(strengths)
        if not different.isdisjoint(self._swap.sliders):
            return True
        return bool(different) and any(not different.isdisjoint(s) for s in self._dependent_sliders(strengths))

    def _dependent_sliders(self, strengths: Tensor) -> Iterator[set[int]]:
        """The sliders whose changes depend on each other, for each parameter with such changes."""
        if not self.has_patches:
            return
        active = _active(strengths)
        for _, _, changes in self.layers:
            chosen = tuple((i, change) for i, change in changes if i in active)
            for parameter in dependent_parameters(chosen):
                yield {i for i, _ in of_parameter(parameter, chosen)}

    @property
    def size_bytes(self) -> int:
        """The memory that its tensors on the device take."""
        joined = (each for active in self._kept.values() for each in active.joined.values())
        tensors = {id(t): t for each in joined for t in each.tensors()}
        return sum(t.numel() * t.element_size() for t in tensors.values()) + self._cache.size_bytes

    def clear_dense(self) -> None:
        """Give back what is kept multiplied out, which is as large as the weights it changes."""
        self._cache.clear()

    def _active_set(self, active: frozenset[int]) -> _ActiveSet:
        if active not in self._kept:
            self._kept[active] = kept = _ActiveSet()
            for index, (module, name, changes) in enumerate(self.layers):
                chosen = changes_by_formula(module, tuple((i, change) for i, change in changes if i in active))
                hooks = _hooks(index, name, chosen, kept, self._cache, self._parameters)
                kept.hooks += [(module, hook) for hook in hooks]
        self._kept.move_to_end(active)
        while len(self._kept) > KEPT_SETS:
            self._kept.popitem(last=False)
        return self._kept[active]


@dataclass(frozen=True)
class _Joined:
    """The active sliders of one layer: the low-rank ones concatenated, the dense ones beside them.

    sliders: the slider of each of the sum-of-ranks channels between down and up.
    """

    down: Tensor | None
    up: Tensor | None
    sliders: tuple[int, ...]
    dense: tuple[tuple[int, Dense], ...]

    def tensors(self) -> list[Tensor]:
        products = [t for t in (self.down, self.up) if t is not None]
        return products + [t for _, change in self.dense for t in change.differences.values()]


class _ActiveSet:
    """What is kept for one set of active sliders: the hooks of their layers, and the tensors these have joined.

    Turning sliders changes `strengths` and nothing else.
    """

    def __init__(self) -> None:
        self.strengths = LayerStrengths()
        self.joined: dict[tuple[object, ...], _Joined] = {}
        self.hooks: list[tuple[nn.Module, Hook]] = []


def _active(strengths: Tensor) -> frozenset[int]:
    """Return the sliders that are not at zero in every batch entry."""
    return frozenset(torch.nonzero(strengths.any(dim=0)).flatten().tolist())


def _fitted(change: ModuleChange, module: nn.Module, name: str) -> ModuleChange:
    return change.fitted(weight_shape(module, name), name) if isinstance(change, LowRank) else change


def _one_if_equal(strengths: Tensor) -> Tensor:
    """(B, sliders) -> (1, sliders) if all entries are equal: it then fits every layer, whatever the layer's batch."""
    return strengths[:1] if bool((strengths == strengths[:1]).all()) else strengths


def _hooks(
    index: int,
    name: str,
    changes: ModuleChanges,
    active: _ActiveSet,
    cache: DenseCache,
    parameters: ParameterAccess,
) -> Iterator[Hook]:
    """Make the forward hooks of one layer: one for its products, and one for its patches."""
    dependent = dependent_parameters(changes)
    products = tuple(
        (i, change)
        for i, change in changes
        if isinstance(change, Dense) or (isinstance(change, LowRank) and "weight" not in dependent)
    )
    if products:
        yield _product_hook(index, name, products, active)
    patches = patch_hook(index, name, changes, active.strengths, cache, parameters)
    if patches:
        yield patches


def _product_hook(index: int, name: str, changes: Sequence[tuple[int, LowRank | Dense]], active: _ActiveSet) -> Hook:
    strengths, kept = active.strengths, active.joined
    learning = any(tensor.requires_grad for _, change in changes for tensor in change.parts.values())

    def joined_for(x: Tensor) -> _Joined:
        if learning:
            return join(changes, x.device, x.dtype)
        key = (index, x.device, x.dtype)
        if key not in kept:
            # Tensors made in inference mode could not be saved for backward, should the model be trained on
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = join(changes, x.device, x.dtype)
        return kept[key]

    def add_change(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        joined = joined_for(x)
        if joined.down is not None and joined.up is not None:
            add = _add_linear if is_linear(module) else _add_convolution
            y = add(module, x, y, joined.down, joined.up, strengths.expanded(joined.sliders, x, name))
        for slider, change in joined.dense:
            s = along(strengths.expanded((slider,), x, name), y, channel=None)
            y = y + s * dense_output(module, x, change.differences).to(y.dtype)
        return y

    return add_change


def join(changes: Sequence[tuple[int, LowRank | Dense]], device: torch.device, dtype: torch.dtype) -> _Joined:
    """Join the changes of one layer; the low-rank ones as A (sum of ranks, in, ...), B (out, sum of ranks, ...)."""
    low_rank = [(i, change) for i, change in changes if isinstance(change, LowRank)]
    if dtype == torch.float16:
        low_rank = [(i, _balanced(change)) for i, change in low_rank]
    dense = tuple((i, change.to(device, dtype)) for i, change in changes if isinstance(change, Dense))
    if not low_rank:
        return _Joined(None, None, (), dense)
    down = torch.cat([change.down.to(device, dtype) for _, change in low_rank], dim=0)
    up = torch.cat([change.up.to(device, dtype) for _, change in low_rank], dim=1)
    return _Joined(down, up, tuple(i for i, change in low_rank for _ in range(change.rank)), dense)


def _balanced(change: LowRank) -> LowRank:
    """The same product of factors alike in size: with a small alpha in it, one alone may be too small for float16."""
    if change.down.requires_grad or change.up.requires_grad:
        return change
    down, up = change.down.float(), change.up.float()
    largest = down.abs().max(), up.abs().max()
    if not all(largest):
        return change
    ratio = (largest[0] / largest[1]).sqrt()
    return LowRank(down / ratio, up * ratio)


def _add_linear(module: nn.Module, x: Tensor, y: Tensor, down: Tensor, up: Tensor, s: Tensor) -> Tensor:
    hidden = F.linear(x, down)  # (b, ..., in) -> (b, ..., r)
    hidden = (hidden * along(s, hidden, channel=-1)).view_as(hidden)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        return y + F.linear(hidden, up).to(y.dtype)
    # In place on the layer's fresh output: one pass over it instead of two
    y.view(-1, y.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up.T)
    return y


def _add_convolution(module: nn.Module, x: Tensor, y: Tensor, down: Tensor, up: Tensor, s: Tensor) -> Tensor:
    hidden = convolve(module, x, down)  # (b, in, ...) -> (b, r, ...)
    hidden = hidden * along(s, hidden, channel=1)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        return y + torch.einsum("or,br...->bo...", up.flatten(1), hidden).to(y.dtype)
    batched = up.flatten(1).expand(len(y), -1, -1)  # (out, r, 1, ...) -> (b, out, r)
    y.flatten(2).baddbmm_(batched, hidden.flatten(2))  # a 1x1 convolution is one product an image
    return y
