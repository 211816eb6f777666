"""The one equation of the pack, acting on the layers of any PyTorch model by forward hooks.

A layer f on which N sliders act gives, for entry b of a batch at sigma,

    y[b] = f(x)[b] + B ( s[b](sigma) * (A x)[b] )

A: the sliders' down-projections, concatenated (sum of ranks x in). B: their up-projections, concatenated
(out x sum of ranks). s: each slider's strength in batch entry b, repeated over its rank. For a convolution A has the
layer's kernel, stride, padding and dilation, and B is 1x1. `merged_weights` has the equation for strengths that are
the same in all entries.

What is no low-rank product is multiplied out and acts as a layer of its own, see `dense_hooks`. A parameter that is
in no layer's formula, such as a block's own, is swapped while the model runs, see `parameter_swap`, and has one
strength for the whole batch. So is that of a layer which a model reads without running it, see `reach`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableSet, Sequence, Set
from contextlib import contextmanager
from math import inf

import torch
from torch import Tensor, nn

from ..changes import Dense, LowRank
from .dense_hooks import DenseCache, Hook, patch_hook
from .layer_kinds import along, dense_output, is_linear, weight_shape
from .module_changes import ModuleChange, ModuleChanges, Patch, dependent_parameters, of_parameter
from .parameter_swap import ParameterSwap, changes_by_formula
from .parameters import ParameterAccess
from .products import Joined, add_convolution, add_linear, join
from .reach import BypassedLayers, watched
from .strengths import KEPT_SETS, LayerStrengths, differing


class SliderHooks:
    """The sliders that act on the layers of one model by forward hooks.

    layers: for each module, the (slider index, change) pairs that act on it. Changes whose tensors require gradients
        are read afresh at every call and receive gradients; all others are cast to the layer's dtype and device and
        concatenated once per set of active sliders.
    names: for each module, its name in error messages.
    parameters: how the model's parameters are read.
    bypassed: layers that are known to be read without being run; the ones that are found to be so are added to it.
    Raises ValueError if a module that a low-rank change acts on is neither linear nor an ungrouped convolution,
        or a change does not fit it.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, ModuleChanges],
        names: Mapping[nn.Module, str] | None = None,
        parameters: ParameterAccess | None = None,
        bypassed: MutableSet[nn.Module] | None = None,
    ) -> None:
        names, self._parameters = names or {}, parameters or ParameterAccess()
        self._bypassed: MutableSet[nn.Module] = set() if bypassed is None else bypassed
        self.layers: list[tuple[nn.Module, str, ModuleChanges]] = []
        for module, changes in layers.items():
            name = names.get(module, type(module).__name__)
            self.layers.append((module, name, tuple((i, _fitted(change, module, name)) for i, change in changes)))
        self.has_patches = any(isinstance(c, Patch) for _, _, changes in self.layers for _, c in changes)
        self._kept: OrderedDict[frozenset[int], _ActiveSet] = OrderedDict()
        self._cache = DenseCache()
        self._swap = self._stand_ins()

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
        from the layer, if its batch is no multiple of B, or a change does not fit. Raises BypassedLayers after the
        block if the model has read weights of layers without running them: what it answered is then without their
        changes, and an evaluation from anew has them, by weights in their place.
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
            with self._swap.acting(strengths[0]), watched(active.unreached):
                yield
        except BypassedLayers as found:
            found.learning = self._stand_in(found.modules)
            raise
        finally:
            for handle in handles:
                handle.remove()
            active.strengths.set(before)

    def _stand_ins(self) -> ParameterSwap:
        bypassed = frozenset(module for module, _, _ in self.layers if module in self._bypassed)
        return ParameterSwap(self.layers, self._cache, self._parameters, bypassed)

    def _stand_in(self, bypassed: Set[nn.Module]) -> bool:
        """Let changed weights stand in for those of layers that hooks do not reach; returns True if some learn."""
        learning = {module for module, _, changes in self.layers if _learns(changes)}
        self._bypassed |= bypassed - learning
        self._swap = self._stand_ins()
        self._kept.clear()
        return not bypassed.isdisjoint(learning)

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
    def stands_in(self) -> bool:
        """True if changed weights stand in for some layers' own."""
        return bool(self._swap.bypassed)

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
                if module in self._swap.bypassed:
                    continue
                chosen = changes_by_formula(module, tuple((i, change) for i, change in changes if i in active))
                hooks = tuple(_hooks(index, name, chosen, kept, self._cache, self._parameters))
                kept.hooks += [(module, hook) for hook in hooks]
                kept.unreached |= {module: name} if hooks else {}
        self._kept.move_to_end(active)
        while len(self._kept) > KEPT_SETS:
            self._kept.popitem(last=False)
        return self._kept[active]


class _ActiveSet:
    """What is kept for one set of active sliders: the hooks of their layers, and the tensors these have joined.

    Turning sliders changes `strengths` and nothing else. unreached: layers with hooks that have not run yet, by name.
    """

    def __init__(self) -> None:
        self.strengths = LayerStrengths()
        self.joined: dict[tuple[object, ...], Joined] = {}
        self.hooks: list[tuple[nn.Module, Hook]] = []
        self.unreached: dict[nn.Module, str] = {}


def _active(strengths: Tensor) -> frozenset[int]:
    """Return the sliders that are not at zero in every batch entry."""
    return frozenset(torch.nonzero(strengths.any(dim=0)).flatten().tolist())


def _learns(changes: ModuleChanges) -> bool:
    """Return True if gradients are to reach any of these changes."""
    own = (change for _, change in changes if not isinstance(change, Patch))
    return any(tensor.requires_grad for change in own for tensor in change.parts.values())


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
    learning = _learns(changes)

    def joined_for(x: Tensor) -> Joined:
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
            add = add_linear if is_linear(module) else add_convolution
            y = add(module, x, y, joined.down, joined.up, strengths.expanded(joined.sliders, x, name))
        for slider, change in joined.dense:
            s = along(strengths.expanded((slider,), x, name), y, channel=None)
            y = y + s * dense_output(module, x, change.differences).to(y.dtype)
        return y

    return add_change
