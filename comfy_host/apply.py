"""Sliders at work on the host's models.

The sliders act while one evaluation of the model runs, by forward hooks or by merged weights put in the place of
the host's by pointer: whatever happens in sampling, nothing stays behind in the host's module tree, and no weight
of the host's is written to.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..sliders.changes import LowRank
from ..sliders.equation.hooks import SliderHooks
from ..sliders.equation.parameter_swap import needs_swap
from ..sliders.gate import PercentToSigma
from ..sliders.stack import Stack
from .batch_entries import (
    EntryGroup,
    entries_are_frames,
    evaluate_groups,
    groups_of,
    needs_separate_evaluations,
    takes_batches_of_one,
)
from .cond_uncond import cond_or_uncond_of, track_prompts
from .errors import is_out_of_memory
from .match import Match, match_slider
from .memory import Holding
from .mode_choice import MODES, room_beside, steady_part
from .model_caches import uncompiled
from .model_state import KEY, Run, state_of
from .parameters import COMFY_PARAMETERS
from .prompt_layers import patch_prompt_layers, prepares_prompts
from .weight_adapters import ComfyPatch

log = logging.getLogger(__name__)


def apply_sliders(model: ModelPatcher, stack: Stack, mode: str = MODES[0]) -> ModelPatcher:
    """A clone of the model on which the stack acts, in addition to the stacks applied to it before.

    mode: "auto", "unmerged" or "merged", see `mode`. Text-encoder layers are left to `text_encoders`; those that
    prepare prompts to `prompt_layers`.
    Raises ValueError if a slider's layers match nothing in the model or do not fit it.
    """
    clone = model.clone()
    if not len(stack):
        return clone
    acting = acting_on(model)
    before, matches = (acting.stack, acting.matches) if acting else (Stack(), ())
    for placed in stack:
        matches += (match_slider(model, placed.slider),)
        patch_prompt_layers(clone, placed, matches[-1])
    acting = ActingStack(before + stack, matches, mode, model.model)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, acting)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _around_a_run)
    if not clone.get_callbacks(CallbacksMP.ON_DETACH, KEY):
        clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _give_back)
        clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, KEY, _act_here_too)
        if not clone.is_dynamic():  # for the sake of a plain model the host would move paged ones off the device
            clone.set_additional_models(KEY, [Holding.of(state_of(model.model), model)])
    if any(placed.cond_or_uncond != "both" for placed in acting.stack):
        track_prompts(clone)
    return clone


def acting_on(model: ModelPatcher) -> ActingStack | None:
    """The stack that acts on a model, with its placement, or None."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0] if wrappers else None


def _act_here_too(model: ModelPatcher, timestep: Tensor, model_options: dict) -> None:
    """Before an evaluation: a guider of two models asks both of them with the options of the first.

    The second one's wrapper is then put into these options, which are a copy made for the run.
    """
    wrappers = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers.setdefault(WrappersMP.APPLY_MODEL, {}).setdefault(KEY, model.get_wrappers(WrappersMP.APPLY_MODEL, KEY))


def _around_a_run(executor: Any, *args, **kwargs) -> Tensor:
    """Around a guider's whole run: what is only true of one run ends with it, however it ends."""
    patcher = executor.class_obj.model_patcher
    with state_of(patcher.model).one_run(patcher.is_dynamic()):
        return executor(*args, **kwargs)


def _give_back(model: ModelPatcher, unpatch_all: bool) -> None:
    """When the host unloads the model, what sliders keep on its device goes too."""
    if unpatch_all:
        state_of(model.model).clear()


class ActingStack:
    """The wrapper around a model evaluation that lets a stack act in it. Clones of a model share it.

    stack: the sliders, all that were applied to the model. matches: the layers that each of them acts on.
    mode: see `mode`. base_model: the model that the layers are of.
    """

    def __init__(self, stack: Stack, matches: tuple[Match, ...], mode: str, base_model: BaseModel) -> None:
        if mode not in MODES:
            raise ValueError(f"Sliders act in one of these modes: {', '.join(MODES)}; got {mode!r}.")
        self.stack = stack
        self.matches = matches
        self.mode = mode
        # What acts on each module, by its path within the host's model: (slider index, change) pairs
        self.placement: dict[str, tuple[tuple[int, LowRank | ComfyPatch], ...]] = {}
        for index, match in enumerate(matches):
            for path, changes in match.layers.items():
                if prepares_prompts(base_model, path):
                    continue
                self.placement[path] = (*self.placement.get(path, ()), *((index, change) for change in changes))
        # Whether what acts depends on the model's own weights
        self.relative = any(match.relative for match in matches) or any(
            needs_swap(base_model.get_submodule(path), changes) for path, changes in self.placement.items()
        )
        self._steady = torch.tensor([placed.is_steady for placed in stack])
        self._states = stack.steady_states
        self._base_model = weakref.ref(base_model)
        self._key = tuple(placed.slider.content_hash for placed in stack)

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ) -> Tensor:
        base_model, options = executor.class_obj, transformer_options or {}
        acting = self._of(base_model)
        if acting is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        conditions = {"t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, "control": control, **kwargs}
        return acting._evaluate(executor, base_model, x, conditions, options)

    def _of(self, base_model: BaseModel) -> ActingStack | None:
        """The stack that acts on the model that is evaluated.

        A guider of two models evaluates both with the options of one, and so with its wrappers.
        """
        patcher = getattr(base_model, "current_patcher", None)
        return self if patcher is None or base_model is self._base_model() else acting_on(patcher)

    def _evaluate(
        self, executor: Any, base_model: BaseModel, x: Tensor, conditions: Mapping[str, Any], options: dict
    ) -> Tensor:
        """The model's answer with the sliders acting; where it cannot tell rows apart, in several evaluations."""
        strengths = self.strengths(base_model, x, conditions["t"], options)

        def evaluate(part: EntryGroup | None, x: Tensor, conditions: dict, options: dict) -> Tensor:
            """The model's own answer, with the sliders acting at the part's strengths."""
            given, own = dict(conditions), strengths if part is None else part.strengths
            positional = (given.pop(name) for name in ("t", "c_concat", "c_crossattn", "control"))
            with ExitStack() as acting:
                if own.any():
                    self._let_act(acting, own, base_model, x, options)
                return executor(x, *positional, options, **given)

        differ = bool((strengths != strengths[:1]).any())
        # where nothing acts, too, as a sweep's rows are more than such a model takes
        alone = takes_batches_of_one(base_model) and (self.stack.batch_size > 1 or differ)
        if alone or (
            differ
            and (
                needs_separate_evaluations(base_model, strengths)
                or self._bank_of(base_model).need_separate_evaluations(strengths)
            )
        ):
            parts = groups_of(strengths, len(options.get("cond_or_uncond", (0,))), alone)
            return evaluate_groups(evaluate, parts, x, conditions, options)
        return evaluate(None, x, conditions, options)

    def strengths(
        self, base_model: BaseModel, x: Tensor, t: Tensor, transformer_options: Mapping[str, Any]
    ) -> Tensor:
        """The strengths for the entries of a model batch: (batch, sliders), or (1, sliders) for all of them.

        The host's batch is its conditioning chunks one after the other, each holding every row.
        Raises ValueError if the rows of the stack are not those of the batch, or nobody says which branch of guidance
        its entries belong to.
        """
        chunks = list(transformer_options.get("cond_or_uncond", (0,)))
        rows = self.stack.batch_size
        if rows > 1 and entries_are_frames(base_model):
            raise ValueError(
                f"The sliders are swept over {rows} rows, but the rows of this model's batch are the frames of one "
                "film, which share their strengths. Sample one film after the other, each at a strength of its own."
            )
        if rows > 1 and x.shape[0] != rows * len(chunks):
            raise ValueError(
                f"The sliders are swept over {rows} rows, but the batch that is sampled has "
                f"{x.shape[0] // len(chunks)}; both numbers must be the same."
            )
        if not self.stack.is_gated:
            strengths = self.stack.strengths()  # reading sigma would make the host wait for the device
        else:
            sigmas = transformer_options.get("sigmas", t)
            run = state_of(base_model).run_of(transformer_options.get("sample_sigmas"))
            percent_to_sigma = _percent_to_sigma(base_model, sigmas.dtype, run)
            strengths = self.stack.strengths(float(sigmas.flatten()[0]), percent_to_sigma)
        if all(placed.cond_or_uncond == "both" for placed in self.stack):
            # (rows, sliders) -> (chunks * rows, sliders)
            return strengths.repeat(len(chunks), 1) if rows > 1 else strengths
        _refuse_tiles(t, transformer_options.get("sigmas"), len(chunks))
        branches = cond_or_uncond_of(base_model, transformer_options)
        acts = torch.tensor([[p.cond_or_uncond in ("both", branch) for p in self.stack] for branch in branches])
        spread = strengths.expand(x.shape[0] // len(chunks), -1)
        return (acts[:, None] * spread).flatten(0, 1)  # (chunks, 1, sliders) * (B, sliders) -> (chunks * B, sliders)

    def _let_act(
        self, acting: ExitStack, strengths: Tensor, base_model: BaseModel, x: Tensor, options: Mapping[str, Any]
    ) -> None:
        """Put the sliders in place until `acting` is left: what holds still merged, the rest by rows."""
        workshop = state_of(base_model)
        version = getattr(base_model, "current_weight_patches_uuid", None)
        bank = self._bank_of(base_model)
        run = workshop.run_of(options.get("sample_sigmas"))  # or a run would begin with what the last one has kept
        doing = (self._key, version, tuple(map(tuple, strengths.tolist())), run)
        acting.enter_context(workshop.prompt_cache.in_use(base_model, doing))
        still = steady_part(strengths, self._steady, self.mode, bank, base_model, x, options, run, self._states)
        if still.any():
            try:
                acting.enter_context(workshop.merged.acting(still, version))
                strengths = strengths * ~self._steady
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                workshop.merged.drop()
                run.refused = True
                log.warning("Sliders act by rows: there is no memory for merged weights")
        if strengths.any():
            acting.enter_context(uncompiled(options))
            acting.enter_context(bank.acting(strengths, self._room(bank, base_model, x)))

    def _room(self, bank: SliderHooks, base_model: BaseModel, x: Tensor) -> float | None:
        """What changes may take that are multiplied out, see `SliderHooks.acting`."""
        if not bank.has_patches:
            return 0
        patcher = base_model.current_patcher
        rewritten = self.relative and patcher is not None and patcher.current_hooks is not None
        return None if rewritten else room_beside(base_model, x)

    def _bank_of(self, base_model: BaseModel) -> SliderHooks:
        """The sliders gathered layer by layer, from one run to the next."""
        # what depends on the model's own weights goes when the host patches them
        version = getattr(base_model, "current_weight_patches_uuid", None) if self.relative else None
        return state_of(base_model).bank((self._key, version), lambda: self._bank(base_model), self.matches)

    def _bank(self, base_model: BaseModel) -> SliderHooks:
        modules = {path: base_model.get_submodule(path) for path in self.placement}
        layers = {modules[path]: changes for path, changes in self.placement.items()}
        return SliderHooks(layers, {module: path for path, module in modules.items()}, COMFY_PARAMETERS)


def _refuse_tiles(t: Tensor, asked: Tensor | None, chunks: int) -> None:
    """Raise ValueError if the model is evaluated on more entries than the host asked for: their order is not known.

    t: the noise levels of the batch's entries. asked: those of the host's rows, in one of its chunks.
    """
    if asked is not None and t.numel() > asked.numel() * chunks:
        raise ValueError(
            f"The model is evaluated on {t.numel()} entries at once where ComfyUI asked for "
            f"{asked.numel() * chunks}: another node puts several tiles into one batch. Sliders on one branch of "
            "guidance cannot tell there whose entries these are; let that node take one tile at a time, or set the "
            "sliders' branch to both."
        )


def _percent_to_sigma(base_model: BaseModel, dtype: torch.dtype, run: Run) -> PercentToSigma:
    """The model's map from fraction of sampling to sigma, rounded as the host rounds it when it compares.

    Each is looked up once a run: on a GPU the model would make the host wait for it.
    """
    model_sampling = base_model.model_sampling

    def percent_to_sigma(percent: float) -> float:
        key = (model_sampling, percent)
        if key not in run.levels:
            sigma = float(model_sampling.percent_to_sigma(percent))
            run.levels[key] = torch.tensor(sigma, dtype=dtype).item()
        return run.levels[key]

    return percent_to_sigma
