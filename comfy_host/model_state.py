"""What the sliders on one model share between evaluations and between runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary, ref

from comfy.model_base import BaseModel
from torch import Tensor, nn

from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.merged_weights import MergedWeights
from .model_caches import PromptCache
from .parameters import COMFY_PARAMETERS

KEY = "concept_sliders"  # of what the pack attaches to ComfyUI's models
T = TypeVar("T")
# One stack is turned again and again; a second one is that of another clone of the model in the same graph
_KEPT_STACKS = 2


@dataclass(eq=False)  # a run is only the same as itself
class Run:
    """What is only true of one sampling run.

    sigmas: by which the host's runs are told apart. merged: evaluations with merged weights, of any stack. refused:
    whether merging is not to be tried again. told: whether it was said why not. levels: sigmas by the model's
    sampling, which is kept so that no other takes its place, and the fraction of sampling.
    """

    sigmas: ref[Tensor] | None = None
    merged: int = 0
    refused: bool = False
    told: bool = False
    levels: dict[tuple[nn.Module, float], float] = field(default_factory=dict)


class ModelState:
    """Belongs to one module tree, and goes with it.

    Dragging one slider of many makes new stacks all the time. What does not depend on the strengths is looked up
    here by what the sliders hold, not by which objects they are: where their layers are in the model, and their
    tensors on the device.
    """

    def __init__(self) -> None:
        self.merged = MergedWeights(COMFY_PARAMETERS)
        self.prompt_cache = PromptCache()
        self.names: Any = None  # the host's names for the model's weights
        self.holding: Any = None  # the workshop in the host's memory management, see `memory`
        # Matches hold sliders' tensors: they stay for as long as a stack has them
        self._matches: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._banks: OrderedDict[Hashable, tuple[SliderHooks, Any]] = OrderedDict()
        self._run = Run()

    def __deepcopy__(self, memo: dict) -> ModelState:
        return ModelState()  # a copied model has weights of its own

    @property
    def size_bytes(self) -> int:
        """The memory of everything that `clear` gives back."""
        merged = self.merged.size_bytes + self.merged.products_bytes
        return merged + sum(bank.size_bytes for bank, _ in self._banks.values())

    @contextmanager
    def one_run(self, paged: bool) -> Iterator[None]:
        """Around a whole sampling run. One that does not end well leaves nothing merged: the next begins afresh.

        paged: whether the host pages the model's weights. It then counts on memory that it knows nothing of here:
        what is as large as weights is not kept.
        """
        whole = False
        try:
            yield
            whole = True
        finally:
            self._run = Run()  # the next one may be over the same tensor of noise levels
            if not whole:
                self.merged.drop()
            if paged:
                for bank, _ in self._banks.values():
                    bank.clear_dense()

    def run_of(self, sigmas: Tensor | None) -> Run:
        """The sampling run over these noise levels, the host's own tensor; without any, a run of one evaluation."""
        if sigmas is None or self._run.sigmas is None or self._run.sigmas() is not sigmas:
            self._run = Run(None if sigmas is None else ref(sigmas))
        return self._run

    def match(self, key: Hashable, make: Callable[[], T]) -> T:
        """Where a slider's layers are in the model; forgotten when nobody has it any more."""
        match = self._matches.get(key)
        if match is None:
            match = self._matches[key] = make()
        return match

    def bank(self, key: Hashable, make: Callable[[], SliderHooks], matches: Any = None) -> SliderHooks:
        """The sliders of a stack, gathered layer by layer. matches: what it is made of, to be kept with it."""
        if key not in self._banks:
            self._banks[key] = (make(), matches)
        self._banks.move_to_end(key)
        while len(self._banks) > _KEPT_STACKS:
            self._banks.popitem(last=False)
        return self._banks[key][0]

    def clear(self) -> None:
        """Give back the memory of everything that can be made again."""
        self.merged.drop()
        self.prompt_cache.clear()
        self._banks.clear()


def state_of(base_model: BaseModel) -> ModelState:
    """Return what sliders keep for this module tree; it lives and goes with the tree."""
    if not hasattr(base_model, KEY):
        setattr(base_model, KEY, ModelState())
    return getattr(base_model, KEY)
