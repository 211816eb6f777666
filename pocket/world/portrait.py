"""The pocket world: people with known numbers.

A portrait is a handful of continuous attributes in [0, 1], a few discrete ones and a seed for what no
word names (shirt, place of the head, stars). Two pairs of attributes hang together on purpose, as age
and glasses do in the data of the big models, so that disentangling them can be seen and measured.
"""

from dataclasses import dataclass, fields, replace
from math import erf, sqrt

import numpy as np

# Correlations of the latent normals behind two pairs of attributes (a Gaussian copula).
AGE_GLASSES_CORRELATION = 0.6
AGE_HAIR_SHADE_CORRELATION = 0.5

GLASSES_SHARE = 0.4
HAT_SHARE = 0.25
SPOILED_SHARE = 0.12

STYLES = ("flat colour", "ink sketch", "pastel")
CONTINUOUS = ("age", "smile", "eye_size", "hair_length", "hair_shade", "skin_tone", "face_width", "sky")
BINARY = ("glasses", "hat", "woman", "spoiled")
DISCRETE = BINARY + ("style",)


@dataclass(frozen=True)
class Portrait:
    """One person. Continuous attributes lie in [0, 1]; the comments name their two ends."""

    age: float = 0.45  # child .. very old
    smile: float = 0.5  # frown .. laugh
    eye_size: float = 0.5  # tiny .. huge
    hair_length: float = 0.5  # cropped .. below the shoulders
    hair_shade: float = 0.4  # black .. white
    skin_tone: float = 0.6  # dark .. pale
    face_width: float = 0.5  # narrow .. wide
    sky: float = 0.8  # night .. noon
    glasses: bool = False
    hat: bool = False
    woman: bool = True
    spoiled: bool = False  # features out of place, for repair sliders
    style: str = "flat colour"
    seed: int = 0  # what no caption names

    def __post_init__(self):
        for name in CONTINUOUS:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")

    def with_(self, **changes) -> "Portrait":
        return replace(self, **changes)

    def numbers(self) -> np.ndarray:
        """Continuous attributes, then binary ones as 0/1, then the style's index: the probe's target."""
        values = [getattr(self, name) for name in CONTINUOUS]
        values += [float(getattr(self, name)) for name in BINARY]
        return np.array(values + [STYLES.index(self.style)], dtype=np.float32)


def random_portrait(rng: np.random.Generator) -> Portrait:
    """Draw a person; the marginals of the continuous attributes are uniform."""
    age = rng.standard_normal()
    shade = _correlated(rng, age, AGE_HAIR_SHADE_CORRELATION)
    glasses = _correlated(rng, age, AGE_GLASSES_CORRELATION)
    free = {name: float(rng.random()) for name in CONTINUOUS if name not in ("age", "hair_shade")}
    return Portrait(
        age=_uniform(age),
        hair_shade=_uniform(shade),
        glasses=_uniform(glasses) > 1 - GLASSES_SHARE,
        hat=bool(rng.random() < HAT_SHARE),
        woman=bool(rng.random() < 0.5),
        spoiled=bool(rng.random() < SPOILED_SHARE),
        style=STYLES[rng.integers(len(STYLES))],
        seed=int(rng.integers(2**31)),
        **free,
    )


def portraits(count: int, seed: int) -> list[Portrait]:
    """`count` people, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [random_portrait(rng) for _ in range(count)]


def _correlated(rng: np.random.Generator, other: float, rho: float) -> float:
    return rho * other + sqrt(1 - rho * rho) * rng.standard_normal()


def _uniform(normal: float) -> float:
    """Standard normal -> uniform on [0, 1], by its distribution function."""
    return 0.5 * (1 + erf(normal / sqrt(2)))


assert {f.name for f in fields(Portrait)} == {*CONTINUOUS, *DISCRETE, "seed"}
