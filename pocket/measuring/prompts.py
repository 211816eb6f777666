"""What the pocket model is asked for when it is measured: opposing prompts, and captions that name everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..world.captions import caption
from ..world.portrait import BINARY, CONTINUOUS, STYLES, Portrait, portraits

PLAIN = "portrait of a person"
DEGREES = 5  # words for each continuous attribute, a fifth of its range each


@dataclass(frozen=True)
class Opposition:
    """Two prompts that should lie far apart in one column of the probe's readings."""

    column: str
    low: str
    high: str


def _of_a_person(column: str, low: str, high: str) -> Opposition:
    return Opposition(column, f"{PLAIN}, {low}", f"{PLAIN}, {high}")


OPPOSITIONS = (
    Opposition("age", "portrait of a very young person", "portrait of a very old person"),
    Opposition("smile", "portrait of a frowning person", "portrait of a laughing person"),
    _of_a_person("eye_size", "tiny eyes", "huge eyes"),
    _of_a_person("hair_length", "very short hair", "very long hair"),
    _of_a_person("hair_shade", "black hair", "white hair"),
    _of_a_person("skin_tone", "very dark skin", "pale skin"),
    _of_a_person("face_width", "very narrow face", "very wide face"),
    _of_a_person("sky", "night sky", "noon sky"),
    _of_a_person("glasses", "without glasses", "with glasses"),
    _of_a_person("hat", "without a hat", "with a hat"),
    Opposition("woman", "portrait of a man", "portrait of a woman"),
    _of_a_person("spoiled", "well drawn, clean features", "badly drawn, distorted features"),
    *(_of_a_person(style, STYLES[index - 1], style) for index, style in enumerate(STYLES)),
)


def world_shift(opposition: Opposition, count: int = 20_000) -> dict[str, float]:
    """How far the world itself moves every other number between the two ends: what hangs together moves along.

    The ends of a continuous attribute are the first and the last fifth of its range, as the words are.
    """
    people = portraits(count, seed=2**41)
    low, high = ([p for p in people if end(p)] for end in _ends(opposition.column))
    others = [name for name in CONTINUOUS + BINARY if name != opposition.column]
    return {
        name: float(np.mean([getattr(p, name) for p in high]) - np.mean([getattr(p, name) for p in low]))
        for name in others
    }


def _ends(column: str) -> tuple[Callable[[Portrait], bool], Callable[[Portrait], bool]]:
    if column in CONTINUOUS:
        return lambda p: getattr(p, column) < 1 / DEGREES, lambda p: getattr(p, column) >= 1 - 1 / DEGREES
    if column in BINARY:
        return lambda p: not getattr(p, column), lambda p: getattr(p, column)
    index = STYLES.index(column)
    return lambda p: p.style == STYLES[index - 1], lambda p: p.style == STYLES[index]


def described(count: int, seed: int) -> tuple[list[Portrait], list[str]]:
    """People nobody was trained on, well drawn, and a caption of each that names every attribute."""
    rng = np.random.default_rng(seed)
    people = [person.with_(spoiled=False) for person in portraits(count, seed=2**41 + seed)]
    return people, [caption(person, rng, complete=True) for person in people]


def degree_named(value: float) -> float:
    """The middle of the fifth of the range that a caption's word stands for."""
    return (min(int(value * DEGREES), DEGREES - 1) + 0.5) / DEGREES


def degrees_of(people: list[Portrait], name: str) -> list[float]:
    """What the captions of these people say of a continuous attribute, in [0, 1]."""
    assert name in CONTINUOUS
    return [degree_named(getattr(person, name)) for person in people]
