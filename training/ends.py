"""Checks that there is something to learn: ends that encoder or model cannot tell apart teach rounding alone.

AdamW scales whatever gradient it gets to full steps, so that a slider would be trained on the rounding of two equal
numbers, with a small loss, and saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .concept import Concept

NOTHING = 2e-6  # of what is compared: a model in float32 rounds at some 4e-7
LITTLE = 2e-3  # of a model's answer: ends that can be seen lie at 1e-2 and above, synonyms at 3e-3
ROUNDING, MOSTLY_ROUNDING = 0.1, 0.5  # the shares of a difference that come again
ABOVE_ROUNDING = 32.0  # times the epsilon of a model's numbers: what differs by more differs truly
ONLY_IN = "the two ends must differ in words that it knows"


def check_encodings(concepts: Sequence[Concept], conditionings: Mapping[str, list[Any]]) -> None:
    """Raise ValueError if the encodings of both ends are the same for all concepts, with every phrase.

    conditionings: ComfyUI's CONDITIONING of every prompt.
    """
    ends = [end for concept in concepts for end in concept.ends()]
    if all(relative_difference(conditionings[more], conditionings[less]) <= NOTHING for more, less in ends):
        more, less = ends[0]
        raise ValueError(
            f"The prompts {more!r} and {less!r} have the same encoding, and there is nothing to learn: {ONLY_IN}."
        )


@dataclass(frozen=True)
class Answers:
    """How far a frozen model's answers to both ends of a concept lie apart.

    apart: |d(c+) - d(c-)| / |d(c_t)|, over all compared. comes_again: the share of d(c+) - d(c-) that is there again
    when the model is asked again: 1 where it is exact, about 0 where all of it is rounding.
    """

    apart: float
    comes_again: float = 1.0

    @property
    def are_equal(self) -> bool:
        """True if the ends differ by no more than rounding."""
        return self.apart <= NOTHING or self.comes_again < ROUNDING

    @property
    def differ_little(self) -> bool:
        """True if what a slider would learn from them is small, or rounding for the most part."""
        return self.apart < LITTLE or self.comes_again < MOSTLY_ROUNDING

    def said_of(self, concept: Concept) -> str:
        """Say it in a sentence."""
        if self.are_equal:
            return f"The model answers {concept.more!r} and {concept.less!r} alike."
        rounding = f", of which {1 - self.comes_again:.0%} is rounding" if self.comes_again < MOSTLY_ROUNDING else ""
        return (
            f"There is little to learn: the model's answers to {concept.more!r} and {concept.less!r} differ by "
            f"{self.apart:.2g} of their size{rounding}."
        )


def relative_size(change: Tensor, of: Tensor) -> float:
    """Return |change| / |of|, both over all their numbers."""
    return float(change.float().norm() / of.float().norm().clamp(min=1e-12))


def share_again(first: Tensor, again: Tensor) -> float:
    """Return the share of a change that is there again when it is worked out again: <first, again> / |first|^2."""
    return float((first.float() * again.float()).sum() / first.float().square().sum())


def relative_difference(one: Any, other: Any) -> float:
    """Return how far two CONDITIONINGs lie apart: the largest |a - b| / |b|; infinite for other shapes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return float("inf")
        return relative_size(one.float() - other.float(), other)
    if isinstance(one, dict) and isinstance(other, dict):
        same = one.keys() == other.keys()
        return max((relative_difference(one[k], other[k]) for k in one), default=0.0) if same else float("inf")
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        same = len(one) == len(other)
        return max(map(relative_difference, one, other), default=0.0) if same else float("inf")
    return 0.0
