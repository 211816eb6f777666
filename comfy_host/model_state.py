"""What the sliders on one model keep between evaluations, and between runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet, WeakValueDictionary, ref

import torch
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.merged_weights import MergedWeights
from ..sliders.gate import PercentToSigma
from .model_caches import PromptCache
from .parameters import COMFY_PARAMETERS
from .sampling_run import percent_to_sigma

if TYPE_CHECKING:
    from .layer_finder import LayerFinder
    from .memory import SliderMemory

KEY = "concept_sliders"  # of what the pack attaches to ComfyUI's models
T = TypeVar("T")
# The stack whose strengths are being changed, and that of another clone of the model in the same graph
_KEPT_STACKS = 2


@dataclass(eq=False)  # compared by identity
class Run:
    """What is only true of one sampling run.

    sigmas: the tensor by which ComfyUI's runs are told apart. merged_evaluations: those with merged weights so far,
    of any stack. merging_refused: True once merging is not to be tried again. reason_told: True once the user is told
    why nothing is merged. check_latent: once sliders have acted, raises ValueError for a latent that is not finite.
    """

    sigmas: ref[Tensor] | None = None
    merged_evaluations: int = 0
    merging_refused: bool = False
    reason_told: bool = False
    check_latent: Callable[[Tensor], None] | None = None
    # By the model's sampling, which is kept so that no other takes its place, and the fraction of sampling
    _sigma_at: dict[tuple[Any, float], float] = field(default_factory=dict)

    def percent_to_sigma(self, model_sampling: Any, dtype: torch.dtype) -> PercentToSigma:
        """Return the model's map from fraction of sampling to sigma, see `sampling_run.percent_to_sigma`.

        Each value is computed once a run: on a GPU it would make ComfyUI wait for the device every time.
        """
        exact = percent_to_sigma(model_sampling, dtype)

        def kept(percent: float) -> float:
            key = (model_sampling, percent)
            if key not in self._sigma_at:
                self._sigma_at[key] = exact(percent)
            return self._sigma_at[key]

        return kept


class ModelState:
    """What sliders keep for one module tree; it goes when the tree goes.

    Dragging one slider of many makes new stacks all the time. What does not depend on the strengths is found here by
    the content of the sliders, not by their identity: their layers in the model, and their tensors on the device.
    """

    def __init__(self) -> None:
        self.merged = MergedWeights(COMFY_PARAMETERS)
        self.prompt_cache = PromptCache()
        self.finder: LayerFinder | None = None  # of the model's layers by name, once asked for
        self.bypassed: WeakSet[nn.Module] = WeakSet()  # layers that the model reads without running them
        self.memory: SliderMemory | None = None  # this state in ComfyUI's memory management
        # Matches hold sliders' tensors: they stay for as long as a stack has them
        self._matches: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._hooks: OrderedDict[Hashable, tuple[SliderHooks, Any]] = OrderedDict()
        self._run = Run()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelState:
        return ModelState()  # a copied model has weights of its own

    @property
    def size_bytes(self) -> int:
        """The memory of everything that `clear` gives back."""
        merged = self.merged.size_bytes + self.merged.products_bytes
        return merged + sum(hooks.size_bytes for hooks, _ in self._hooks.values())

    @contextmanager
    def one_run(self, paged: bool) -> Iterator[None]:
        """Enclose a whole sampling run. After one that fails nothing is merged any more: the next begins afresh.

        paged: True if ComfyUI pages the model's weights. It then counts on memory that it knows nothing of here:
        what is as large as weights is not kept.
        """
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            self._run = Run()  # a new one, as the next run may have the same tensor of sigmas
            if not succeeded:
                self.merged.drop()
            if paged:
                for hooks, _ in self._hooks.values():
                    hooks.clear_dense()

    def run_of(self, sigmas: Tensor | None) -> Run:
        """Return the sampling run over ComfyUI's own tensor of sigmas; without one, a run of a single evaluation."""
        if sigmas is None or self._run.sigmas is None or self._run.sigmas() is not sigmas:
            self._run = Run(None if sigmas is None else ref(sigmas))
        return self._run

    @property
    def run(self) -> Run:
        """The present sampling run."""
        return self._run

    def match(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the match of a slider with the model; it is forgotten when nobody has it any more."""
        match = self._matches.get(key)
        if match is None:
            match = self._matches[key] = make()
        return match

    def hooks(self, key: Hashable, make: Callable[[], SliderHooks], matches: Any = None) -> SliderHooks:
        """Return the hooks of a stack. matches: what they are made of, to be kept with them."""
        if key not in self._hooks:
            self._hooks[key] = (make(), matches)
        self._hooks.move_to_end(key)
        while len(self._hooks) > _KEPT_STACKS:
            self._hooks.popitem(last=False)
        return self._hooks[key][0]

    def clear(self) -> None:
        """Give back the memory of everything that can be made again."""
        self.merged.drop()
        self.prompt_cache.clear()
        self._hooks.clear()


def state_of(base_model: BaseModel) -> ModelState:
    """Return what sliders keep for this module tree."""
    if not hasattr(base_model, KEY):
        setattr(base_model, KEY, ModelState())
    state: ModelState = getattr(base_model, KEY)
    return state
