"""What a slider's header says beside its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .validation import check_types, made_of


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How far a run went, and what it was given.

    latent_shape: (C, ..., h, w) of the latents trained at. batch: how many a step; a visual slider's, in its largest
    set. scenes: the prompts of a visual slider's pictures. pairs: a hash of these pictures. family, base_model_hash:
    of the model trained on, as `SliderInfo` has them.
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

    def __post_init__(self) -> None:
        check_types(self, "A trained slider")
        if self.batch < 1:
            raise ValueError(f"A trained slider: batch must be at least 1, got {self.batch}.")
        if self.latent_shape and (len(self.latent_shape) < 3 or min(self.latent_shape) < 1):
            got = list(self.latent_shape)
            raise ValueError(f"A trained slider: latent_shape must be channels, height and width or more, got {got}.")


FACTS = tuple(each.name for each in fields(Facts))


def facts_from(values: Mapping[str, Any]) -> Facts:
    """The facts among the values that a slider's header has; what it does not say is as by default."""
    return made_of(Facts, {name: values[name] for name in FACTS if name in values}, "trained slider")
