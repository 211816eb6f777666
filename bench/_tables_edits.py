"""The ways to edit that the tables compare: two published baselines, the audition, sliders by words and by pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import node_helpers
from _tables_studio import Studio
from _tables_subjects import Pairs, Subject, digest_of_pairs
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.audition import Contrast, audition
from concept_sliders.nodes.auditioning import encode_contrasts
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.recipe import VisualRecipe


@dataclass(frozen=True)
class InThePrompt:
    """The attribute is added to the prompt after a fixed number of steps: the prompt of an end stands in the target's
    place from the gate on."""

    subject: Subject

    def question(self) -> Any:
        return "in the prompt", asdict(self.subject.concept)

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        concept, start = self.subject.concept, studio.gate.start
        said = studio.said(concept.target, end := _end(self.subject, sign))
        if not start:
            return studio.model, said[end]
        windows = ((said[concept.target], 0.0, start), (said[end], start, 1.0))
        parts = [
            node_helpers.conditioning_set_values(prompt, {"start_percent": first, "end_percent": last})
            for prompt, first, last in windows
        ]
        return studio.model, [entry for part in parts for entry in part]


@dataclass(frozen=True)
class Composition:
    """Composition by guidance (arXiv 2206.01714): from the gate on, guidance towards the prompt of an end is added to
    that towards the target, with the same scale."""

    subject: Subject

    def question(self) -> Any:
        return "composition", asdict(self.subject.concept)

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        target, end = self.subject.concept.target, _end(self.subject, sign)
        said = studio.said(target, end, "")
        towards = Contrast((said[end],), (said[""],), studio.settings.cfg)
        return audition(studio.model, [towards], 1.0, studio.gate), said[target]


@dataclass(frozen=True)
class Audition:
    """What a slider would be trained to do, added in every step."""

    subject: Subject
    seed: int
    strength: float = 1.0

    def question(self) -> Any:
        return "audition", self.strength, asdict(self.subject.concept), self.seed

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        concept = self.subject.concept
        concept = replace(concept, eta=studio.eta(concept, self.seed))
        contrasts = encode_contrasts(studio.clip, (concept,))
        heard = audition(studio.model, contrasts, sign * self.strength, studio.gate)
        return heard, studio.said(concept.target)[concept.target]


@dataclass(frozen=True)
class ByWords:
    """A slider by words. changes: of the training's settings."""

    subject: Subject
    seed: int
    iterations: int
    strength: float = 1.0
    changes: dict[str, Any] = field(default_factory=dict)

    def question(self) -> Any:
        trained = (asdict(self.subject.concept), self.seed, self.iterations, self.changes)
        return "slider by words", self.strength, trained

    def slider(self, studio: Studio) -> Slider:
        recipe = studio.recipe(self.subject, self.seed, **self.changes)
        return studio.by_words(replace(recipe, steps=self.iterations), self.subject.name)

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        return _turned(studio, self.slider(studio), sign * self.strength, self.subject.concept.target)


@dataclass(frozen=True)
class ByPairs:
    """A slider by pairs. pairs: drawn ones, or a folder of images. method: of `VisualRecipe`."""

    pairs: Pairs | Path
    prompt: str
    seed: int
    iterations: int
    method: str = "ADDifT"
    strength: float = 1.0

    def question(self) -> Any:
        source = digest_of_pairs(self.pairs)
        return "slider by pairs", self.method, self.strength, [source, self.prompt, self.seed, self.iterations]

    def slider(self, studio: Studio) -> Slider:
        recipe = VisualRecipe(method=self.method, steps=self.iterations, seed=self.seed, fit_strength=True)
        return studio.by_pairs(self.pairs, self.prompt, recipe)

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        return _turned(studio, self.slider(studio), sign * self.strength, self.prompt)


def _end(subject: Subject, sign: int) -> str:
    return subject.concept.more if sign > 0 else subject.concept.less


def _turned(studio: Studio, slider: Slider, strength: float, prompt: str) -> tuple[Any, list]:
    return apply_sliders(studio.model, Stack.of(slider, strength, studio.gate)), studio.said(prompt)[prompt]
