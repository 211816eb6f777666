"""The one equation of the pack, acting on the layers of any PyTorch model.

A layer f on which N sliders act gives, for row b of a batch at noise level sigma,

    y[b] = f(x)[b] + B ( s[b](sigma) * (A x)[b] )

A: the sliders' down-projections, concatenated (sum of ranks x in). B: their up-projections, concatenated
(out x sum of ranks). s: each slider's strength in row b, repeated over its rank. For a convolution A has the
layer's kernel, stride, padding and dilation, and B is 1x1. This is the way by rows; `merged_weights` has the other
one, for strengths that are the same in all rows. A change that is no product of low rank acts as a layer of its own:
it is multiplied out, and kept so where there is room for that. A parameter that no layer's formula knows, such as a
block's own, is replaced for the time of the evaluation, and has one strength for all rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..changes import Dense, LowRank
from .dense_hooks import Shelf, patch_hook
from .layer_kinds import along, convolve, dense_output, is_linear, weight_shape
from .parameter_swap import StandIns, by_formula
from .strengths import KEPT_SETS, Spread, differing
from .weight_changes import ModuleChange, ModuleChanges, Patch, bound_together, on


@dataclass(frozen=True)
class _Joined:
    """The active sliders of one layer: the low-rank ones concatenated, the dense ones beside them.

    columns: the slider of each of the sum-of-ranks channels between down and up.
    """

    down: Tensor | None
    up: Tensor | None
    columns: tuple[int, ...]
    dense: tuple[tuple[int, Dense], ...]

    def tensors(self) -> list[Tensor]:
        products = [t for t in (self.down, self.up) if t is not None]
        return products + [t for _, change in self.dense for t in change.differences.values()]


class SliderHooks:
    """The sliders that act on the layers of one model.

    layers: for each module, the (slider index, change) pairs that act on it. Changes whose tensors
        require gradients are read afresh at every call and receive gradients; all others are cast to the
        layer's dtype and device and concatenated once per set of active sliders.
    names: for each module, the name used in error messages.
    Raises ValueError if a module that a low-rank change acts on is neither linear nor an ungrouped convolution,
        or a change does not fit it.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, ModuleChanges],
        names: Mapping[nn.Module, str] | None = None,
    ) -> None:
        names = names or {}
        self.layers: list[tuple[nn.Module, str, ModuleChanges]] = []
        for module, changes in layers.items():
            name = names.get(module, type(module).__name__)
            self.layers.append((module, name, tuple((i, _fitted(change, module, name)) for i, change in changes)))
        self.has_patches = any(isinstance(c, Patch) for _, _, changes in self.layers for _, c in changes)
        self._kept: OrderedDict[frozenset[int], _Acting] = OrderedDict()
        self._shelf = Shelf()
        self._stand_ins = StandIns(self.layers, self._shelf)

    @contextmanager
    def acting(self, strengths: Tensor, room: float | None = inf) -> Iterator[None]:
        """Let the sliders act on the model's layers within the block, and leave no trace after it.

        strengths: (rows, sliders). With one row it holds for every row of the batch; otherwise each layer's
            batch must be a multiple m of the rows, and each row stands for m consecutive entries of it.
        Sliders at zero in every row are left out; where all are, nothing is registered at all. A model that
        checkpoints activations runs its layers again in backward, so backward then belongs inside the block.
        room: the bytes that changes may take which are multiplied out, beyond those that are kept already; what
            there is no room for is multiplied out anew in every call. None: everything is, and nothing is kept,
            as the layers' own weights change between calls.
        Raises ValueError where changes differ between rows that cannot, see `need_separate_evaluations`; and, from
        the layer, where the batch does not divide into the rows, or a change does not fit.
        """
        strengths = _fewest_rows(strengths.detach().to("cpu", torch.float32))
        self._stand_ins.check(strengths)
        if self.need_separate_evaluations(strengths):
            raise ValueError("Sliders whose changes do not add up cannot differ between the rows of one evaluation.")
        acting = self._kept_for(_active(strengths))
        self._shelf.allow(room)
        handles, before = [], acting.spread.at(strengths)
        try:
            for module, hook in acting.hooks:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            with self._stand_ins.acting(strengths[0]):
                yield
        finally:
            for handle in handles:
                handle.remove()
            acting.spread.at(before)

    def depend_on_each_other(self, strengths: Tensor) -> bool:
        """Whether at these strengths, (rows, sliders), some changes depend on others, and do not just add up."""
        return any(True for _ in self._bound(strengths))

    def need_separate_evaluations(self, strengths: Tensor) -> bool:
        """Whether such changes, or those with stand-ins, have strengths that differ between rows."""
        different = differing(strengths)
        if different.isdisjoint(self._stand_ins.sliders):
            return bool(different) and any(not different.isdisjoint(sliders) for sliders in self._bound(strengths))
        return True

    def _bound(self, strengths: Tensor) -> Iterator[set[int]]:
        """The sliders that are bound together, for each parameter where there are such."""
        if not self.has_patches:
            return
        active = _active(strengths)
        for _, _, changes in self.layers:
            chosen = tuple((i, change) for i, change in changes if i in active)
            for parameter in bound_together(chosen):
                yield {i for i, _ in on(parameter, chosen)}

    @property
    def size_bytes(self) -> int:
        """The memory that the tensors on the device take."""
        joined = (each for acting in self._kept.values() for each in acting.joined.values())
        held = {id(t): t for each in joined for t in each.tensors()}
        return sum(t.numel() * t.element_size() for t in held.values()) + self._shelf.size_bytes

    def clear_dense(self) -> None:
        """Give back what is kept multiplied out, which is as large as the weights it changes."""
        self._shelf.clear()

    def _kept_for(self, active: frozenset[int]) -> _Acting:
        if active not in self._kept:
            self._kept[active] = acting = _Acting()
            for index, (module, name, changes) in enumerate(self.layers):
                chosen = by_formula(module, tuple((i, change) for i, change in changes if i in active))
                acting.hooks += [(module, hook) for hook in _hooks(index, name, chosen, acting, self._shelf)]
        self._kept.move_to_end(active)
        while len(self._kept) > KEPT_SETS:
            self._kept.popitem(last=False)
        return self._kept[active]


class _Acting:
    """What is kept for one set of active sliders: the hooks of their layers, and what these have joined.

    Turning sliders changes the strengths in `spread` and nothing else.
    """

    def __init__(self) -> None:
        self.spread = Spread()
        self.joined: dict[tuple, _Joined] = {}
        self.hooks: list[tuple[nn.Module, Callable[..., Tensor]]] = []


def _active(strengths: Tensor) -> frozenset[int]:
    """The sliders that are not at zero in every row."""
    return frozenset(torch.nonzero(strengths.any(dim=0)).flatten().tolist())


def _fitted(change: ModuleChange, module: nn.Module, name: str) -> ModuleChange:
    return change.fitted(weight_shape(module, name), name) if isinstance(change, LowRank) else change


def _fewest_rows(strengths: Tensor) -> Tensor:
    """One row where all are the same: it then fits every layer, whatever the layer's batch."""
    return strengths[:1] if bool((strengths == strengths[:1]).all()) else strengths


def _hooks(
    index: int, name: str, chosen: ModuleChanges, acting: _Acting, shelf: Shelf
) -> Iterator[Callable[..., Tensor]]:
    """The forward hooks of one layer: its products in one, and what is multiplied out in another."""
    together = bound_together(chosen)
    products = tuple(
        (i, change)
        for i, change in chosen
        if isinstance(change, Dense) or (isinstance(change, LowRank) and "weight" not in together)
    )
    if products:
        yield _hook(index, name, products, acting)
    patches = patch_hook(index, name, chosen, acting.spread, shelf)
    if patches:
        yield patches


def _hook(
    index: int, name: str, chosen: tuple[tuple[int, LowRank | Dense], ...], acting: _Acting
) -> Callable[..., Tensor]:
    spread, kept = acting.spread, acting.joined
    learning = any(tensor.requires_grad for _, change in chosen for tensor in change.parts.values())

    def joined_for(x: Tensor) -> _Joined:
        if learning:
            return join(chosen, x.device, x.dtype)
        key = (index, x.device, x.dtype)
        if key not in kept:
            # Tensors made in inference mode could not be saved for backward, should the model be trained on
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = join(chosen, x.device, x.dtype)
        return kept[key]

    def add_change(module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        joined = joined_for(x)
        if joined.down is not None:
            add = _add_linear if is_linear(module) else _add_convolution
            y = add(module, x, y, joined, spread.over(joined.columns, x, name))
        for slider, change in joined.dense:
            s = along(spread.over((slider,), x, name), y, channel=None)
            y = y + s * dense_output(module, x, change.differences).to(y.dtype)
        return y

    return add_change


def join(chosen: Sequence[tuple[int, LowRank | Dense]], device: torch.device, dtype: torch.dtype) -> _Joined:
    """The changes of one layer; those of low rank as A (sum of ranks, in, ...) and B (out, sum of ranks, ...)."""
    low_rank = [(i, change) for i, change in chosen if isinstance(change, LowRank)]
    if dtype == torch.float16:
        low_rank = [(i, _balanced(change)) for i, change in low_rank]
    dense = tuple((i, change.to(device, dtype)) for i, change in chosen if isinstance(change, Dense))
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


def _add_linear(module: nn.Module, x: Tensor, y: Tensor, joined: _Joined, s: Tensor) -> Tensor:
    hidden = F.linear(x, joined.down)  # (b, ..., in) -> (b, ..., r)
    hidden = (hidden * along(s, hidden, channel=-1)).view_as(hidden)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        return y + F.linear(hidden, joined.up).to(y.dtype)
    # In place on the layer's fresh output: one pass over it instead of two
    y.view(-1, y.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), joined.up.T)
    return y


def _add_convolution(module: nn.Module, x: Tensor, y: Tensor, joined: _Joined, s: Tensor) -> Tensor:
    hidden = convolve(module, x, joined.down)  # (b, in, ...) -> (b, r, ...)
    hidden = hidden * along(s, hidden, channel=1)
    if torch.is_grad_enabled() or y.dtype != hidden.dtype or not y.is_contiguous():
        up = joined.up.flatten(1)
        return y + torch.einsum("or,br...->bo...", up, hidden).to(y.dtype)
    up = joined.up.flatten(1).expand(len(y), -1, -1)  # (out, r, 1, ...) -> (b, out, r)
    y.flatten(2).baddbmm_(up, hidden.flatten(2))  # a 1x1 convolution is one product a picture
    return y
