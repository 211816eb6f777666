"""One evaluation of a model on which sliders act: their strengths, then the choice of mode, then the act itself.

The sliders act by forward hooks, or by merged weights put in the place of ComfyUI's by pointer, while one evaluation
runs. Whatever happens in sampling, nothing stays behind in ComfyUI's module tree, and its weights are not written to.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..sliders.changes import LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.parameter_swap import needs_swap
from ..sliders.equation.reach import evaluated
from ..sliders.stack import Stack
from .batch_entries import (
    EntryGroup,
    Evaluation,
    entry_strengths,
    evaluate_groups,
    groups_of,
    needs_separate_evaluations,
    own_containers,
    takes_batches_of_one,
)
from .errors import is_out_of_memory
from .match import Match
from .mode_choice import MERGED, MODES, Choice, Situation, choose, room_beside
from .model_caches import uncompiled
from .model_state import KEY, ModelState, Run, state_of
from .overflow import check_answer, check_latent
from .parameters import COMFY_PARAMETERS
from .prompt_layers import prepares_prompts
from .weight_adapters import ComfyPatch

log = logging.getLogger(__name__)


def acting_on(model: ModelPatcher) -> ActingStack | None:
    """Return the stack that acts on a model, or None."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0] if wrappers else None


class ActingStack:
    """A wrapper around `apply_model` that lets a stack of sliders act in it. Clones of a model share it.

    stack: the sliders, all that were applied to the model. matches: the layers that each of them acts on.
    mode: one of `mode_choice.MODES`. base_model: the model that the layers are of. warn: see `apply_sliders`.
    Raises ValueError for another mode.
    """

    def __init__(
        self,
        stack: Stack,
        matches: tuple[Match, ...],
        mode: str,
        base_model: BaseModel,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Sliders act in one of these modes: {', '.join(MODES)}; got {mode!r}.")
        self.stack, self.matches, self.mode, self._warn = stack, matches, mode, warn
        # (slider index, change) pairs by the path of the module that they act on
        self._changes: dict[str, tuple[tuple[int, LowRank | ComfyPatch], ...]] = {}
        for index, match in enumerate(matches):
            for path, changes in match.layers.items():
                if not prepares_prompts(base_model, path):
                    self._changes[path] = (*self._changes.get(path, ()), *((index, change) for change in changes))
        self._relative = any(match.relative for match in matches) or any(
            needs_swap(base_model.get_submodule(path), changes) for path, changes in self._changes.items()
        )
        self._steady = torch.tensor([each.is_steady for each in stack])
        self._steady_states = stack.steady_states
        self._base_model = weakref.ref(base_model)
        self._key = tuple(each.slider.content_hash for each in stack)

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        base_model, options = executor.class_obj, transformer_options or {}
        acting = self._of(base_model)
        if acting is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        conditions = {"t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, "control": control, **kwargs}
        state = state_of(base_model)
        run = state.run_of(options.get("sample_sigmas"))
        evaluation = Evaluation(base_model, x, t, options, run)
        return evaluated(lambda: acting._evaluate(executor, evaluation, own_containers(conditions), state))

    def strengths(self, evaluation: Evaluation) -> Tensor:
        """Return the strengths of an evaluation's entries, see `entry_strengths`."""
        return entry_strengths(self.stack, evaluation)

    def _of(self, base_model: BaseModel) -> ActingStack | None:
        """Return the stack that acts on the model that is evaluated.

        A guider of two models evaluates both with the options of one, and so with its wrappers.
        """
        patcher = getattr(base_model, "current_patcher", None)
        return self if patcher is None or base_model is self._base_model() else acting_on(patcher)

    def _evaluate(
        self, executor: Any, evaluation: Evaluation, conditions: Mapping[str, Any], state: ModelState
    ) -> Tensor:
        """Evaluate the model with the sliders acting, in several evaluations if its entries cannot share one."""
        strengths = self.strengths(evaluation)
        hooks = self._hooks(evaluation, state) if strengths.any() else None

        def evaluate(group: EntryGroup | None, x: Tensor, conditions: Mapping[str, Any], options: Any) -> Tensor:
            own = strengths if group is None else group.strengths
            part = Evaluation(evaluation.base_model, x, conditions["t"], options, evaluation.run)
            with ExitStack() as acting:
                if hooks is not None and own.any():
                    self._act(acting, part, own, hooks, state)
                return _apply_model(executor, x, conditions, options)

        groups = self._groups(evaluation, strengths, hooks)
        if groups:
            answer = evaluate_groups(evaluate, groups, evaluation.x, conditions, evaluation.options)
        else:
            answer = evaluate(None, evaluation.x, conditions, evaluation.options)
        if hooks is not None:
            bare = partial(_apply_model, executor, evaluation.x, conditions, evaluation.options)
            self._check(answer, bare, conditions["c_crossattn"], hooks, strengths, evaluation.run)
        return answer

    def _check(
        self,
        answer: Tensor,
        bare: Callable[[], Tensor],
        encoding: Tensor | None,
        hooks: SliderHooks,
        strengths: Tensor,
        run: Run,
    ) -> None:
        """Raise ValueError if strengths are more than the numbers bear; later answers of a run, at its end."""
        if run.check_latent is None:  # looking at every answer would make ComfyUI wait for the device
            check_answer(answer, bare, encoding, self.stack, hooks, strengths)
        if run.sigmas is not None:  # of a single evaluation there is no later answer
            run.check_latent = partial(check_latent, stack=self.stack, hooks=hooks, strengths=strengths)

    def _groups(self, evaluation: Evaluation, strengths: Tensor, hooks: SliderHooks | None) -> list[EntryGroup]:
        """Decide which entries are evaluated apart: no groups if all of them can share one evaluation."""
        base_model = evaluation.base_model
        differ = bool((strengths != strengths[:1]).any())
        # also at strength zero: the batch of a sweep has more entries than such a model takes
        alone = takes_batches_of_one(base_model) and (self.stack.batch_size > 1 or differ)
        apart = alone or (
            hooks is not None
            and differ
            and (needs_separate_evaluations(base_model, strengths) or hooks.need_separate_evaluations(strengths))
        )
        return groups_of(strengths, evaluation.chunk_count, alone) if apart else []

    def _act(
        self, acting: ExitStack, evaluation: Evaluation, strengths: Tensor, hooks: SliderHooks, state: ModelState
    ) -> None:
        """Put the sliders in place until `acting` is left: choose which of them are merged, prepare, and act."""
        base_model, version = evaluation.base_model, evaluation.weights_version
        at = Situation(evaluation, strengths, self._steady, self.mode, self._steady_states, hooks, state.merged)
        choice = choose(at)
        self._tell(_prepare(choice, at))
        what_acts = (self._key, version, tuple(map(tuple, strengths.tolist())), evaluation.run)
        acting.enter_context(state.prompt_cache.in_use(base_model, what_acts))
        no_room = _merge(acting, choice, at, version)
        self._tell(no_room)
        unmerged = strengths if no_room else choice.unmerged
        if unmerged.any():
            acting.enter_context(uncompiled(evaluation.options))
            acting.enter_context(hooks.acting(unmerged, self._room(hooks, evaluation, state)))

    def _tell(self, problem: str) -> None:
        """Log why nothing is merged; those who asked for merged weights are told it too."""
        if problem:
            log.warning(problem)
        if problem and self.mode == MERGED:
            self._warn(problem)

    def _room(self, hooks: SliderHooks, evaluation: Evaluation, state: ModelState) -> float | None:
        """Return the bytes that changes may take which are multiplied out, see `SliderHooks.acting`."""
        patcher = evaluation.patcher
        if not (hooks.has_patches or hooks.stands_in):
            return 0
        if patcher is not None and patcher.current_hooks is not None and self._depends_on_weights(state):
            return None  # ComfyUI rewrites the weights between evaluations
        return room_beside(evaluation.base_model, evaluation.x)

    def _depends_on_weights(self, state: ModelState) -> bool:
        """Return True if what is made of some changes depends on the weights that the model has at present."""
        return self._relative or bool(state.bypassed)

    def _hooks(self, evaluation: Evaluation, state: ModelState) -> SliderHooks:
        """Return the stack's hooks, which are kept from one run to the next."""
        # what depends on the model's own weights is made anew when ComfyUI patches them
        version = evaluation.weights_version if self._depends_on_weights(state) else None

        def make() -> SliderHooks:
            modules = {path: evaluation.base_model.get_submodule(path) for path in self._changes}
            layers = {modules[path]: changes for path, changes in self._changes.items()}
            names = {module: path for path, module in modules.items()}
            return SliderHooks(layers, names, COMFY_PARAMETERS, state.bypassed)

        return state.hooks((self._key, version), make, self.matches)


def _prepare(choice: Choice, at: Situation) -> str:
    """Make room for merged weights, or note in the run why nothing is merged.

    Returns what the user should know of it: "" if nothing, or if it was said in this run.
    """
    run, obstacle = at.evaluation.run, choice.obstacle
    if obstacle is None:
        at.merged.prepare(at.hooks.layers)
        at.merged.max_sets = at.merged.max_sets if choice.max_sets is None else choice.max_sets
        run.merged_evaluations += 1
        return ""
    if obstacle.drops:
        at.merged.drop()
    run.merging_refused = run.merging_refused or obstacle.lasts
    if not obstacle.reason or at.mode != MERGED or run.reason_told:
        return ""
    run.reason_told = True
    return f"Sliders act unmerged although they are to be merged: {obstacle.reason}."


def _merge(acting: ExitStack, choice: Choice, at: Situation, version: Any) -> str:
    """Put the merged weights in place until `acting` is left. Returns why they are not: "", or a want of memory."""
    try:
        acting.enter_context(at.merged.acting(choice.merged, version))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        at.merged.drop()
        at.evaluation.run.merging_refused = True
        return "Sliders act unmerged: there is no memory for merged weights."
    return ""


def _apply_model(executor: Any, x: Tensor, conditions: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    """Call what is wrapped, in the order of `apply_model`'s arguments."""
    rest = dict(conditions)
    positional = [rest.pop(name) for name in ("t", "c_concat", "c_crossattn", "control")]
    result: Tensor = executor(x, *positional, options, **rest)
    return result
