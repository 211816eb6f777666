"""What to train and how: frozen, validated descriptions shared by the nodes and the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from .layers import CHOICES


@dataclass(frozen=True)
class Concept:
    """A textual concept: the value of a SLIDER_CONCEPT socket (arXiv 2311.12092, eq. 8).

    target: the prompt the slider acts on, c_t; empty for a slider that acts on anything.
    more, less: prompts for the two ends, c+ and c-.
    hold: phrases p to hold fixed, such as "male" and "female"; each is joined to c+ and to c-.
    eta: guidance of the edit; it sets how far strength 1 goes, above 0.
    Raises ValueError if more or less says nothing, both say the same, a phrase is empty or repeated, or eta
    is not above 0.
    """

    target: str
    more: str
    less: str
    hold: tuple[str, ...] = ()
    eta: float = 4.0

    def __post_init__(self) -> None:
        for name in ("more", "less"):
            if not getattr(self, name).strip():
                raise ValueError(f"The concept's '{name}' prompt is empty: say what that end looks like.")
        if _plain(self.more) == _plain(self.less):
            raise ValueError(f"The concept's ends are the same prompt, {self.more!r}: there is nothing to learn.")
        if any(not phrase.strip() for phrase in self.hold):
            raise ValueError("A phrase to hold fixed is empty; leave it out or write one.")
        if len({_plain(phrase) for phrase in self.hold}) < len(self.hold):
            raise ValueError(f"A phrase to hold fixed is there twice: {', '.join(self.hold)}.")
        if not (isfinite(self.eta) and self.eta > 0):
            raise ValueError(f"eta must be a number above 0, got {self.eta}; for the opposite, swap more and less.")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases, or one empty phrase where nothing is held fixed."""
        return self.hold or ("",)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """(c+ & p, c- & p) for every phrase p."""
        return tuple((_joined(self.more, p), _joined(self.less, p)) for p in self.phrases)

    def targets(self) -> tuple[str, ...]:
        """c_t & p for every phrase p."""
        return tuple(_joined(self.target, p) for p in self.phrases)

    def prompts(self) -> tuple[str, ...]:
        """Every prompt that training asks about, once each."""
        ends = (prompt for pair in self.ends() for prompt in pair)
        return tuple(dict.fromkeys((self.target, *self.targets(), *ends)))


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    rank: of the slider, 1 to 128. steps: optimiser steps, at least 1. learning_rate: of AdamW, above 0.
    layers: one of `layers.CHOICES`. both_signs: train strength -1 towards the opposite edit as well.
    rollout_steps: noise levels of a frozen trajectory. guidance: its classifier-free guidance scale.
    visits: training points taken from one trajectory before the next is rolled out.
    own_rollouts: share of the trajectories that are rolled out with the slider on, in [0, 1]; the rest run the
        bare model, as published. held_target: ask the frozen model for the target with every phrase too, and not
        for the target alone; without phrases it changes nothing.
    noise_range: the part of sampling trained on, as fractions from its start, e.g. (0.0, 1.0).
    seed: of noise, initial weights and choices.
    Raises ValueError, naming the field, for a value out of range.
    """

    concept: Concept
    rank: int = 4
    steps: int = 400
    learning_rate: float = 5e-4
    layers: str = "all but cross-attention"
    both_signs: bool = True
    rollout_steps: int = 20
    guidance: float = 3.0
    visits: int = 10
    own_rollouts: float = 0.5
    held_target: bool = True
    noise_range: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            ("rank", 1 <= self.rank <= 128, "1 to 128"),
            ("steps", self.steps >= 1, "at least 1"),
            ("learning_rate", isfinite(self.learning_rate) and self.learning_rate > 0, "a number above 0"),
            ("layers", self.layers in CHOICES, f"one of {', '.join(CHOICES)}"),
            ("rollout_steps", self.rollout_steps >= 2, "at least 2"),
            ("guidance", isfinite(self.guidance) and self.guidance >= 0, "0 or above"),
            ("visits", self.visits >= 1, "at least 1"),
            ("own_rollouts", 0 <= self.own_rollouts <= 1, "0 to 1"),
            (
                "noise_range",
                0 <= self.noise_range[0] < self.noise_range[1] <= 1,
                "two fractions, 0 <= start < end <= 1",
            ),
        )
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"Training: {name} must be {allowed}, got {getattr(self, name)}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a slider's header."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Recipe:
        concept = {**values["concept"], "hold": tuple(values["concept"]["hold"])}
        return Recipe(
            **{
                **values,
                "concept": Concept(**concept),
                "noise_range": tuple(values["noise_range"]),
            }
        )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _joined(prompt: str, phrase: str) -> str:
    return f"{prompt}, {phrase}" if phrase else prompt
