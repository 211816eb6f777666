"""What the tables turn: of the pocket world twelve concepts by words, ten by drawn pairs; of real models thirty."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from concept_sliders.pocket.measuring.prompts import OPPOSITIONS, PLAIN
from concept_sliders.pocket.train_sliders import LESSONS
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import Portrait, portraits
from concept_sliders.pocket.world.unnamed import Unnamed
from concept_sliders.training.concept import Concept

STYLES_LEFT_OUT = ("flat colour", "pastel")  # one change of style is enough
PAIRS, PAIRS_SEED = 6, 30
COMPOSED = (2, 5, 10, 20, 50)  # sliders in a stack


@dataclass(frozen=True)
class Subject:
    """A concept by words. attribute: what the probe calls it; "" where there is no probe. kept: attributes that the
    concept's preserved phrases name."""

    name: str
    concept: Concept
    attribute: str = ""
    kept: tuple[str, ...] = ()

    def preserving_nothing(self) -> Subject:
        return replace(self, concept=replace(self.concept, preserve=()))


def _by_words() -> tuple[Subject, ...]:
    found = []
    for each in OPPOSITIONS:
        if each.column in ("spoiled", *STYLES_LEFT_OUT):
            continue
        preserve = LESSONS["age"].hold if each.column == "age" else ()
        concept = Concept(PLAIN, each.high, each.low, preserve)
        found.append(Subject(each.column.replace("_", " "), concept, each.column, ("glasses",) if preserve else ()))
    return tuple(found)


TWELVE = _by_words()
ABLATED = TWELVE[0]  # age, the one with phrases to preserve
REPAIRED = Subject("repair", LESSONS["repair"].recipe.concepts[0], "spoiled")


@dataclass(frozen=True)
class Pairs:
    """A concept by drawn pairs.

    field: what differs, of `Portrait`; with `unnamed`, of `Unnamed`: what no caption names. ends: its values, less
    and more. attribute: what the probe calls it, "" where it does not read it.
    """

    name: str
    field: str
    ends: tuple[Any, Any]
    attribute: str = ""
    unnamed: bool = True

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw six people at both ends, alike in everything else: (6, 128, 128, 3) uint8 each."""
        hats = self.unnamed and self.field == "hat"  # they must be on, and off where brows are to be seen
        people = [p.with_(spoiled=False, glasses=False, hat=hats) for p in portraits(PAIRS, PAIRS_SEED)]
        less, more = (np.stack([self._draw(person, end) for person in people]) for end in self.ends)
        return less, more

    def _draw(self, person: Portrait, end: Any) -> np.ndarray:
        if self.unnamed:
            return draw(person, replace(Unnamed.of(person.seed), **{self.field: end}))
        return draw(person.with_(**{self.field: end}))


@cache
def digest_of_pairs(pairs: Pairs | Path) -> str:
    """Return a hash of drawn pairs, or of the files of a folder."""
    if isinstance(pairs, Pairs):
        contents = [end.tobytes() for end in pairs.drawn()]
    else:
        contents = [path.read_bytes() for path in sorted(pairs.rglob("*")) if path.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


BY_PAIRS = (
    Pairs("eye size", "eye_size", (0.1, 0.9), "eye_size", unnamed=False),
    Pairs("brow", "brow", (0.05, 0.95), "brow"),
)
UNNAMED_BY_PAIRS = (  # they fill the stack of fifty
    Pairs("shirt", "shirt", (0.62, 0.02)),
    Pairs("iris", "iris", (0.05, 0.95)),
    Pairs("gaze across", "gaze", ((-0.9, 0.0), (0.9, 0.0))),
    Pairs("gaze down", "gaze", ((0.0, -0.9), (0.0, 0.9))),
    Pairs("colour of the hat", "hat", (0.6, 0.0)),
    Pairs("hills", "hills", (0.05, 0.95)),
    Pairs("place across", "x", (-5.0, 5.0)),
    Pairs("place down", "y", (-4.0, 4.0)),
)


def _real(name: str, target: str, more: str, less: str, preserve: Sequence[str] = ()) -> Subject:
    return Subject(name, Concept(target, more, less, tuple(preserve)))


_GENDERS = ("male", "female")
# Thirty as in the paper: those whose sliders it published or tables, and others of its kinds. The words are our own.
THIRTY = (
    _real("age", "person", "very old person", "very young person", _GENDERS),
    _real("hair", "person", "person with curly hair", "person with straight hair", _GENDERS),
    _real("sky", "landscape", "landscape, dark stormy sky", "landscape, bright clear sky"),
    _real("rust", "old car", "old car, rusty, corroded", "old car, shiny, polished"),
    _real("smile", "person", "laughing person, wide smile", "frowning person", _GENDERS),
    _real("surprise", "person", "surprised person, raised eyebrows", "calm person", _GENDERS),
    _real("weight", "person", "chubby person", "thin person", _GENDERS),
    _real("muscles", "person", "muscular person", "slender person", _GENDERS),
    _real("hair length", "person", "person with very long hair", "person with very short hair", _GENDERS),
    _real("eye size", "person", "person with huge eyes", "person with tiny eyes", _GENDERS),
    _real("eyebrows", "person", "person with thick eyebrows", "person with thin eyebrows", _GENDERS),
    _real("beard", "man", "man with a long beard", "clean-shaven man"),
    _real("make-up", "woman", "woman with heavy make-up", "woman without make-up"),
    _real("tan", "person", "sun-tanned person", "pale person", _GENDERS),
    _real("professional", "photo", "professional photo, sharp, well lit", "amateur snapshot, dull, badly lit"),
    _real("detail", "picture", "picture, highly detailed, intricate", "picture, plain, simple"),
    _real("animation", "person", "person, animated film character", "person, photograph", _GENDERS),
    _real("sculpture", "person", "marble sculpture of a person", "photograph of a person", _GENDERS),
    _real("clay", "person", "clay figure of a person", "photograph of a person", _GENDERS),
    _real("cartoon", "person", "cartoon of a person", "photograph of a person", _GENDERS),
    _real("watercolour", "landscape", "watercolour painting of a landscape", "photograph of a landscape"),
    _real("clutter", "room", "cluttered, messy room", "tidy, empty room"),
    _real("darkness", "landscape", "landscape in the dark, gloomy", "landscape in daylight, bright"),
    _real("winter", "landscape", "landscape in winter, deep snow", "landscape in summer, green"),
    _real("tropics", "landscape", "tropical landscape, palms", "northern landscape, firs"),
    _real("festivity", "street", "street with festive decorations", "street without decorations"),
    _real("fog", "landscape", "landscape in thick fog", "landscape in clear air"),
    _real("rain", "street", "street in heavy rain", "street on a dry day"),
    _real("season", "tree", "tree in autumn, red leaves", "tree in spring, green leaves"),
    _real("blur", "portrait of a person", "portrait, blurred background", "portrait, sharp background", _GENDERS),
)
REAL_REPAIR = _real(
    "repair",
    "picture",
    "picture with realistic, well-formed objects, natural anatomy",
    "picture with distorted, deformed objects, bad anatomy",
)
