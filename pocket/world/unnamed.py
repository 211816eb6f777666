"""What no caption names: the place of the head, the colours of shirt and hat, the way a spoiled picture slips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Unnamed:
    """Lengths are in canvas units, hues in [0, 1).

    x, y: of the head, from its usual place. drop, side: how far eyes and mouth slip in a spoiled picture.
    signs: the ways they do, -1 or 1. brow: from straight (0) to highly arched (1). gaze: where the eyes look,
    right and down, each in [-1, 1]. iris: from brown (0) to blue (1). hills: where they stand.
    """

    x: float
    y: float
    drop: float
    side: float
    signs: tuple[int, int]
    shirt: float
    hat: float
    brow: float
    gaze: tuple[float, float]
    iris: float
    hills: float

    @classmethod
    def of(cls, seed: int) -> Unnamed:
        """The same for the same seed. Pictures depend on the order of the draws."""
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(-5, 5), rng.uniform(-4, 4)
        drop, side = rng.uniform(13, 18), rng.uniform(12, 17)
        signs = tuple(rng.choice((-1, 1), 2).tolist())
        shirt, hat, brow = rng.random(3).tolist()
        gaze = tuple(rng.uniform(-1, 1, 2).tolist())
        return cls(x, y, drop, side, signs, shirt, hat, brow, gaze, iris=rng.random(), hills=rng.random())
