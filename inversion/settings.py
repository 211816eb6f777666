"""What an inversion is told to do: one frozen, validated description of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

METHODS = ("null-text", "negative prompt", "plain")
POOLED = ("held", "optimised")
PUBLISHED_STEPS = 50
_SAME_CFG = 1e-3  # a CFG nearer to 1 than this is 1: guidance then cancels out


@dataclass(frozen=True)
class InversionSettings:
    """Holds the settings of an inversion; the defaults but the scheduler are published (arXiv 2211.09794).

    method: "null-text" optimises the negative embedding of every step; "negative prompt" uses the positive one in its
        place (arXiv 2305.16807); "plain" leaves the negative as it is.
    steps: of sampling, as asked of the scheduler, which may make another number, in [1, 1000].
    cfg: scale of the guidance that the image is to be sampled with, in [0, 100].
    scheduler: by ComfyUI's name of it.
    inner_steps: of Adam within a step of sampling, at most, in [1, 1000].
    learning_rate: of Adam in the first step of sampling; it falls to half by the last.
    tolerance: mean squared error of latents at which the first step of sampling is good enough; 0 never stops early.
    refinement: fixed-point iterations of each step of DDIM inversion, in [0, 100].
    pooled: "held" keeps the pooled part of the negative embedding, where there is one; "optimised" optimises it, too.
    Raises ValueError naming the setting, what was given and what is allowed.
    """

    method: str = METHODS[0]
    steps: int = PUBLISHED_STEPS
    cfg: float = 7.5
    scheduler: str = "simple"
    inner_steps: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5
    refinement: int = 0
    pooled: str = POOLED[0]

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("pooled", self.pooled, POOLED)
        for name, least, most in (("steps", 1, 1000), ("inner_steps", 1, 1000), ("refinement", 0, 100)):
            _within(name, getattr(self, name), least, most)
        _within("cfg", self.cfg, 0.0, 100.0)
        _within("learning_rate", self.learning_rate, 1e-8, 10.0)
        _within("tolerance", self.tolerance, 0.0, 1e6)
        if self.method != "plain" and abs(self.cfg - 1) < _SAME_CFG:
            raise ValueError(
                f"Inversion by the method {self.method!r} has no effect at a cfg of 1: the negative prompt does not "
                f"enter there (got cfg {self.cfg:g}). Set the cfg to sample with, such as 7.5, or choose 'plain'."
            )

    @property
    def optimises(self) -> bool:
        """Returns True if negative embeddings are optimised."""
        return self.method == "null-text"

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Returns Adam's step size: 1e-2 (1 - i / 100) for step i of 50, as published, stretched to other numbers."""
        return self.learning_rate * (1 - step / (2 * steps))

    def tolerance_at(self, step: int, steps: int) -> float:
        """Returns the loss that is good enough: 1e-5 + i 2e-5 for step i of 50, as published, stretched likewise."""
        return self.tolerance * (1 + 2 * step * PUBLISHED_STEPS / steps)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Inversion: {name} must be one of {', '.join(allowed)}; got {value!r}.")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not isfinite(value) or not least <= value <= most:
        raise ValueError(f"Inversion: {name} must lie between {least:g} and {most:g}; got {value!r}.")
