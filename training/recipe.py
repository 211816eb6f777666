"""What to train and how: frozen, validated descriptions shared by the nodes and the command line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from .concept import Concept
from .layer_choice import CHOICES
from .step_sizes import RHO
from .validation import check_types, from_values

VISUAL_METHODS = ("noise", "ADDifT")
GRADIENT_CHECKPOINTING = "gradient checkpointing"
MEMORY = ("auto", GRADIENT_CHECKPOINTING)
_NOT_OF_STEPS = ("steps", "notes", "memory", "fit_strength")  # fields that do not decide how a step goes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all training runs have in common.

    rank: of the slider, 1 to 128. alpha: its scale is alpha / rank, as in LoRA files; 0 stands for the rank, a scale
        of 1. full_rank: train whole differences of weights instead, for comparison.
    steps: optimiser steps, at least 1. learning_rate: of AdamW, the same for all layers; 0 for one in units of each
        layer, whose weight a step then changes by the share rho, see `step_sizes`.
    layers: one of `layer_choice.CHOICES`. convolutions: train convolutions too, not linear layers alone.
    pattern: a regular expression that is searched for in the layers' paths, for experts; empty takes all.
    both_signs: train strength -1 as well.
    start_percent, end_percent: the part of sampling that is trained on, as fractions from its start (0.2 is 20 %).
    patience: ends the run early when the effect has not grown for so many evaluations, 20 steps apart; 0 never.
    seed: of noise, initial weights and choices. notes: whatever else is worth keeping.
    memory: one of `MEMORY`: "auto" keeps what backward needs until memory runs out; with the other the model's blocks
        run again in backward from the start. The slider is the same.
    Raises ValueError, naming the field, for a value of another type or out of range.
    """

    rank: int = 4
    alpha: float = 0.0
    full_rank: bool = False
    steps: int = 400
    learning_rate: float = 0.0
    rho: float = RHO
    layers: str = CHOICES[0]
    convolutions: bool = True
    pattern: str = ""
    both_signs: bool = True
    start_percent: float = 0.0
    end_percent: float = 1.0
    patience: int = 0
    seed: int = 0
    memory: str = MEMORY[0]
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "Training")
        for name, good, allowed in self._checks():
            if not good:
                raise ValueError(f"Training: {name} must be {allowed}, got {getattr(self, name)!r}.")

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        """(field, whether its value is allowed, what is)."""
        yield "rank", 1 <= self.rank <= 128, "1 to 128"
        yield "alpha", isfinite(self.alpha) and self.alpha >= 0, "above 0, or 0 for the rank"
        yield "steps", self.steps >= 1, "at least 1"
        yield "learning_rate", isfinite(self.learning_rate) and self.learning_rate >= 0, "above 0, or 0 for automatic"
        yield "rho", isfinite(self.rho) and self.rho > 0, "a number above 0"
        yield "layers", self.layers in CHOICES, f"one of {', '.join(CHOICES)}"
        yield "pattern", _is_pattern(self.pattern), "a regular expression"
        yield "patience", self.patience >= 0, "0 or above"
        yield "seed", 0 <= self.seed < 2**64, "0 to 2**64 - 1"
        yield "memory", self.memory in MEMORY, f"one of {', '.join(MEMORY)}"
        yield "start_percent", 0 <= self.start_percent < 1, "0 or above, and below 1"
        yield "end_percent", self.start_percent < self.end_percent <= 1, "above start_percent, and at most 1"

    @property
    def scale(self) -> float:
        """alpha / rank: what the low-rank product is multiplied by."""
        return self.alpha / self.rank if self.alpha and not self.full_rank else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a slider's header."""
        return {"kind": _name_of(type(self)), **asdict(self)}

    def digest(self) -> str:
        """A short hash of what decides how each step goes: runs that share it differ in length alone."""
        values = {name: value for name, value in self.as_dict().items() if name not in _NOT_OF_STEPS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def ends(self) -> tuple[str, str]:
        """Labels of strength -1 and +1."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TextualRecipe(Recipe):
    """A slider from words (arXiv 2311.12092, eq. 8).

    concepts: one or several, each with its own target, learned by one slider.
    rollout_steps: sampling steps of a rollout. guidance: its classifier-free guidance scale.
    samples_per_rollout: samples taken from one trajectory before the next is rolled out.
    on_policy_rollouts: share of the trajectories that are rolled out with the slider on, in [0, 1]; the rest run the
        bare model. The paper has 0, its code 1.
    phrases_per_sigma: of the phrases to preserve, how many the frozen model is evaluated with at one sigma, all in
        turn; 0 for all of them at once.
    preserve_in_target: where rollouts are made with the slider on, hold what the phrases name to what it is without
        the slider, see `objectives.preserved_target`; without phrases it changes nothing.
    """

    concepts: tuple[Concept, ...]
    rollout_steps: int = 10
    guidance: float = 3.0
    samples_per_rollout: int = 12
    on_policy_rollouts: float = 0.5
    phrases_per_sigma: int = 2
    preserve_in_target: bool = True

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._checks()
        yield "concepts", len(self.concepts) > 0, "one concept or more"
        yield "rollout_steps", self.rollout_steps >= 2, "at least 2"
        yield "guidance", isfinite(self.guidance) and self.guidance >= 0, "0 or above"
        yield "samples_per_rollout", self.samples_per_rollout >= 1, "at least 1"
        yield "phrases_per_sigma", self.phrases_per_sigma >= 0, "at least 1, or 0 for all"
        yield "on_policy_rollouts", 0 <= self.on_policy_rollouts <= 1, "0 to 1"

    def prompts(self) -> tuple[str, ...]:
        """Every prompt that training asks about, once each, and the empty one."""
        return tuple(dict.fromkeys((*(p for concept in self.concepts for p in concept.prompts()), "")))

    @property
    def ends(self) -> tuple[str, str]:
        """Labels of strength -1 and +1."""
        return _ends_of(self.concepts)


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe(Recipe):
    """A slider of the text encoder alone.

    concepts: as for a textual slider; their eta is not used. share: how far strength 1 moves the prompt's encoding,
    in parts of the way from the less end to the more end. reach: the largest strength that is trained, at least 1.
    """

    concepts: tuple[Concept, ...]
    share: float = 1.0
    reach: float = 2.0

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._checks()
        yield "concepts", len(self.concepts) > 0, "one concept or more"
        yield "share", isfinite(self.share) and self.share > 0, "a number above 0"
        yield "reach", isfinite(self.reach) and self.reach >= 1, "a number of at least 1"

    @property
    def ends(self) -> tuple[str, str]:
        """Labels of strength -1 and +1."""
        return _ends_of(self.concepts)


@dataclass(frozen=True, kw_only=True)
class VisualRecipe(Recipe):
    """A slider from images of the same scene at several strengths (arXiv 2311.12092, visual sliders).

    method: one of `VISUAL_METHODS`. sets: how many sets of images, for the header. less, more: labels of the ends.
    fit_strength: make the slider stronger at the end if it moves images by too little, see `strength_fit`.
    """

    method: str = VISUAL_METHODS[0]
    sets: int = 0
    less: str = ""
    more: str = ""
    fit_strength: bool = False

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._checks()
        yield "method", self.method in VISUAL_METHODS, f"one of {', '.join(VISUAL_METHODS)}"

    @property
    def ends(self) -> tuple[str, str]:
        return self.less, self.more


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How far a run went, and what it was given.

    latent_shape: (C, ..., h, w) of the latents trained at. batch: how many a step; a visual slider's, in its largest
    set. scenes: the prompts of a visual slider's images. pairs: a hash of these images. family, base_model_hash:
    of the model trained on, as `SliderInfo` has them. learning_rates: the smallest, the median and
    the largest one. etas: of the concepts, as trained; audition_moved: how far the auditions that chose them move the
    latent, 0 for an eta set by hand. reached: see `reached.reached`. strengthened, moved: how many times stronger the
    slider was made, and how far it then moves images, see `strength_fit`; a moved of 0 was not measured.
    Raises ValueError, naming the field, for a value of another type or out of range.
    """

    steps_done: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    latent_shape: tuple[int, ...] = ()
    batch: int = 1
    scenes: tuple[str, ...] = ()
    pairs: str = ""
    family: str = ""
    base_model_hash: str = ""
    learning_rates: dict[str, float] = field(default_factory=dict)
    etas: tuple[float, ...] = ()
    audition_moved: tuple[float, ...] = ()
    reached: dict[str, float] = field(default_factory=dict)
    strengthened: float = 1.0
    moved: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "A trained slider")
        if self.batch < 1:
            raise ValueError(f"A trained slider: batch must be at least 1, got {self.batch}.")
        if self.latent_shape and (len(self.latent_shape) < 3 or min(self.latent_shape) < 1):
            got = list(self.latent_shape)
            raise ValueError(f"A trained slider: latent_shape must be channels, height and width or more, got {got}.")


RUN_RECORD_FIELDS = tuple(each.name for each in fields(RunRecord))


def run_record_from(values: Mapping[str, Any]) -> RunRecord:
    """Return the facts among the values that a slider's header has; what it does not say is as by default."""
    return from_values(
        RunRecord, {name: values[name] for name in RUN_RECORD_FIELDS if name in values}, "trained slider"
    )


_KINDS = {"textual": TextualRecipe, "visual": VisualRecipe, "encoder": EncoderRecipe}


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe in a slider's header, as `Recipe.as_dict` wrote it; what it does not say is as by default.

    Raises ValueError if it is none, or says something that recipes do not have.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"A recipe is a set of named values, got a {type(values).__name__}.")
    values = {name: value for name, value in values.items() if name not in RUN_RECORD_FIELDS}
    kind = values.pop("kind", "textual")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"A recipe is one of {', '.join(_KINDS)}; got {kind!r}.")
    if isinstance(concepts := values.get("concepts"), list):
        values["concepts"] = [from_values(Concept, each, "concept") for each in concepts]
    return from_values(_KINDS[kind], values, f"{kind} recipe")


def _ends_of(concepts: tuple[Concept, ...]) -> tuple[str, str]:
    """Return the (less, more) prompts of the first concept; swapped if it is to be erased."""
    first = concepts[0]
    return (first.more, first.less) if first.erase else (first.less, first.more)


def _name_of(kind: type[Recipe]) -> str:
    return next(name for name, each in _KINDS.items() if each is kind)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
