"""What a run has measured, and of it each slider: scores at every strength, effect and distortion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from . import slider_scores
from .instruments import Instruments
from .scores import alignment, clip_score, delta_clip_score, embedding_distance, frechet_distance
from .sweep import Sweep

DELTA_CLIP, CLIP_SCORE, LESS = "delta CLIP", "CLIP score", ", less"
OTHER_READINGS = "change of the other readings"

SAME = 1e-6  # between two embeddings, of unit length, in each of their numbers: the encoder does not tell them apart

Score = Callable[[Sequence[int], Sequence[int]], Tensor]  # indices of n images and of their originals -> (n,)


@dataclass(frozen=True)
class EditTexts:
    """The texts of a slider's two ends, for CLIP scores; empty where there is none."""

    more: str = ""
    less: str = ""


@dataclass(frozen=True)
class WholeScores:
    """The scores of a slider over all strengths, the mean of its series; None where what they take is missing.

    A series is the images of one prompt and seed at all strengths. See `slider_scores`.
    """

    conceptual_range: float | None = None  # points of CLIP score
    conceptual_smoothness: float | None = None
    semantic_preservation: float | None = None
    overall_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured(Sweep):
    """Holds what was measured of a sweep's N images.

    embeddings: (N, E) by encoder. lpips: (N,) distances to each image's original, or None. readings: (N,) by
    attribute.
    """

    embeddings: dict[str, Tensor]
    lpips: Tensor | None
    readings: dict[str, Tensor]


def joined(parts: Sequence[Measured]) -> Measured:
    """Join what runs have measured whose plans differ in their strengths alone; an image in several counts once."""
    made = [planned for part in parts for planned in part.made]
    first = {planned: at for at, planned in reversed(list(enumerate(made)))}  # the first time that it was made
    rows = sorted(first.values())

    def together(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))[rows]

    distances = [part.lpips for part in parts if part.lpips is not None]
    strengths = sorted({strength for part in parts for strength in part.plan.strengths})
    return Measured(
        replace(parts[0].plan, strengths=tuple(strengths)),
        tuple(made[row] for row in rows),
        together([part.thumbnails for part in parts]),
        any(part.cancelled for part in parts),
        embeddings={name: together([part.embeddings[name] for part in parts]) for name in parts[0].embeddings},
        lpips=together(distances) if distances else None,
        readings={name: together([part.readings[name] for part in parts]) for name in parts[0].readings},
    )


def blind_encoders(measured: Measured) -> list[str]:
    """Name in a sentence each the vision encoders that gave all images the same embedding: their figures say nothing.

    None is named by the images of a single prompt and seed, which a slider need not move.
    """
    if sum(planned.slider is None for planned in measured.made) < 2:
        return []
    return [
        f"The vision encoder {name} gave all {len(embeddings)} images the same embedding: what it measures says "
        "nothing. Connect another."
        for name, embeddings in measured.embeddings.items()
        if (embeddings - embeddings[0]).abs().max() < SAME
    ]


class SliderMeasurements:
    """The measurements of one slider of a run.

    position: of the slider in the plan's stack. texts: of its two ends; a CLIP score takes the joint encoder of the
    instruments, and the text of more.
    """

    def __init__(self, measured: Measured, position: int, texts: EditTexts, instruments: Instruments):
        self.measured, self.position, self.texts, self.instruments = measured, position, texts, instruments
        self.name = measured.plan.stack[position].slider.name
        self._at = {planned: index for index, planned in enumerate(measured.made)}

    @cached_property
    def strengths(self) -> tuple[float, ...]:
        """The strengths at which there is an image, in rising order, 0 among them."""
        return self.measured.strengths(self.position)

    def indices(self, strength: float) -> list[int]:
        """Return which images are of this slider at a strength; at 0 the originals."""
        slider = None if strength == 0 else self.position
        return [at for planned, at in self._at.items() if (planned.slider, planned.strength) == (slider, strength)]

    def scores(self, strength: float) -> dict[str, Tensor]:
        """Return every score of the n images at a strength, against their originals, (n,) each."""
        images = self.indices(strength)
        originals = self._originals(images)
        return {name: score(images, originals) for name, score in self._scores.items()}

    def frechet(self, strength: float) -> dict[str, float]:
        """Return the Fréchet distance to the originals by encoder; empty for fewer than two images."""
        images = self.indices(strength)
        originals = self._originals(images)
        if len(images) < 2:
            return {}
        return {
            name: frechet_distance(values[images], values[originals])
            for name, values in self.measured.embeddings.items()
        }

    @cached_property
    def effect(self) -> str:
        """The name of the score that tells how far the slider does what it is for.

        The delta CLIP score; without it the reading of the attribute that the slider is named after, or of the one
        that it moves most; without a probe the distance to the original.
        """
        if DELTA_CLIP in self._scores:
            return DELTA_CLIP
        if self.measured.readings:
            return attribute_of(self.name, self.movements)
        return self._distances[0]

    @cached_property
    def distortion(self) -> str:
        """The name of the score that tells how far images leave their originals: LPIPS, or else the first encoder's
        distance, or else the mean change of the readings beside the effect's."""
        return self._distances[0] if self._distances else OTHER_READINGS

    @cached_property
    def movements(self) -> dict[str, float]:
        """How far the mean of each reading moves from the lowest strength to the highest."""
        low, high = (self.indices(strength) for strength in (self.strengths[0], self.strengths[-1]))
        return {name: float(v[high].mean() - v[low].mean()) for name, v in self.measured.readings.items()}

    def values(self, name: str, strength: float) -> Tensor:
        """Return a score of the n images at a strength, (n,), by its name or as `distortion` calls it."""
        scores = self.scores(strength)
        if name != OTHER_READINGS:
            return scores[name]
        others = [scores[each].abs() for each in self.measured.readings if each != self.effect]
        return torch.stack(others).mean(0)

    @cached_property
    def whole(self) -> WholeScores:
        """The scores over all strengths, of the series that are complete."""
        series = self.complete_series()
        distances = [self.values(self.distortion, s) for s in self.strengths if s]
        preservation = torch.cat(distances).mean() if distances else torch.tensor(torch.nan)
        whole = WholeScores(semantic_preservation=float(preservation))
        more, less = (self._alignments(text, series) for text in (self.texts.more, self.texts.less))
        if more is None or less is None:
            return whole
        zero = self.strengths.index(0.0)
        extent = 100 * slider_scores.conceptual_range(more, less).mean()
        outwards = more[:, zero:], less[:, : zero + 1].flip(1)
        smoothness = slider_scores.conceptual_smoothness(*outwards).mean()
        overall = slider_scores.overall_score(extent, smoothness, preservation)
        return WholeScores(float(extent), float(smoothness), float(preservation), float(overall))

    def _originals(self, images: Sequence[int]) -> list[int]:
        return [self._at[self.measured.made[at].original] for at in images]

    def complete_series(self) -> Tensor:
        """Return the indices (series, S) of the images of every prompt and seed that has all strengths."""
        rows = [self.measured.row(each, self.position) for each in self.measured.made if each.slider is None]
        found = [[self._at[each] for each in row] for row in rows if all(each in self._at for each in row)]
        return torch.tensor(found, dtype=torch.long).reshape(-1, len(self.strengths))

    def _alignments(self, text: str, series: Tensor) -> Tensor | None:
        """(series, S) cosines with a text, cut at 0; None without a joint encoder, a text or a series."""
        embedding = self.embedded(text)
        if embedding is None or not len(series) or self.instruments.joint is None:
            return None
        return alignment(self.measured.embeddings[self.instruments.joint[0]][series], embedding).clamp(min=0)

    def embedded(self, text: str) -> Tensor | None:
        """Return the embedding (E,) of a text by the joint encoder; None without one, or without a text."""
        return None if self.instruments.joint is None or not text else self.instruments.joint[1]([text])[0]

    @cached_property
    def _distances(self) -> list[str]:
        return [name for name in self._scores if name.startswith(("LPIPS", "distance"))]

    @cached_property
    def _scores(self) -> dict[str, Score]:
        """Every score that there is something for, by name."""
        found: dict[str, Score] = {}
        measured = self.measured
        for suffix, text in (("", self.texts.more), (LESS, self.texts.less)):
            if self.instruments.joint is not None and (embedding := self.embedded(text)) is not None:
                values = measured.embeddings[self.instruments.joint[0]]
                found[DELTA_CLIP + suffix] = _beside_originals(partial(delta_clip_score, text=embedding), values)
                found[CLIP_SCORE + suffix] = _alone(partial(clip_score, texts=embedding), values)
        if measured.lpips is not None and self.instruments.lpips is not None:
            found[f"LPIPS ({self.instruments.lpips.name})"] = _alone(torch.clone, measured.lpips)
        for name, values in measured.embeddings.items():
            found[f"distance ({name})"] = _beside_originals(embedding_distance, values)
        for name, values in measured.readings.items():
            found[name] = _beside_originals(torch.sub, values)
        return found


def attribute_of(name: str, movements: Mapping[str, float]) -> str:
    """Return the reading that a slider of this name is named after, or else the one that it moves most.

    movements: how far it moves each reading, by name.
    """
    words = f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_"
    named = [reading for reading in movements if f"_{reading}_" in words]
    return max(named, key=len) if named else max(movements, key=lambda reading: abs(movements[reading]))


def _beside_originals(score: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Score:
    """Return a score of n images and their originals, of what was measured of each image, (N, ...)."""
    return lambda images, originals: score(values[images], values[originals])


def _alone(score: Callable[[Tensor], Tensor], values: Tensor) -> Score:
    """Return a score of n images by themselves, of what was measured of each image, (N, ...)."""
    return lambda images, originals: score(values[images])
