"""A concept in words: what a slider from words is to learn."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from .validation import check_types


@dataclass(frozen=True)
class Concept:
    """A textual concept: the value of a SLIDER_CONCEPT socket (arXiv 2311.12092, eq. 8).

    target: the prompt the slider acts on, c_t; empty for a slider that acts on anything.
    more, less: prompts for the two ends, c+ and c-.
    preserve: phrases p to leave as they are, such as "male" and "female"; each is joined to c+ and to c-.
    eta: guidance of the edit; it sets how far strength 1 goes. 0 is automatic, see `eta_choice`.
    erase: strength 1 takes the attribute away (-eta) instead of bringing more of it.
    weight: how often a sample of this concept is trained on, against the other concepts of a slider; above 0.
    Raises ValueError if a field is of another type, more or less says nothing, both say the same, a phrase is empty
    or repeated, eta is below 0, or weight is not above 0.
    """

    target: str
    more: str
    less: str
    preserve: tuple[str, ...] = ()
    eta: float = 0.0
    erase: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, "A concept")
        for name in ("more", "less"):
            if not getattr(self, name).strip():
                raise ValueError(f"The concept's '{name}' prompt is empty: say what that end looks like.")
        if _plain(self.more) == _plain(self.less):
            raise ValueError(f"The concept's ends are the same prompt, {self.more!r}: there is nothing to learn.")
        if any(not phrase.strip() for phrase in self.preserve):
            raise ValueError("A phrase to preserve is empty; leave it out or write one.")
        if len({_plain(phrase) for phrase in self.preserve}) < len(self.preserve):
            raise ValueError(f"A phrase to preserve is there twice: {', '.join(self.preserve)}.")
        if not (isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"eta must be above 0, or 0 for automatic; got {self.eta}. For the opposite, erase.")
        if not (isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"A concept's weight must be a number above 0, got {self.weight}.")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases, or one empty phrase where nothing is to be preserved."""
        return self.preserve or ("",)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """(c+ & p, c- & p) for every phrase p."""
        return tuple((_joined(self.more, p), _joined(self.less, p)) for p in self.phrases)

    @property
    def signed_eta(self) -> float:
        """eta of the edit at strength 1."""
        return -self.eta if self.erase else self.eta

    def targets(self) -> tuple[str, ...]:
        """c_t & p for every phrase p."""
        return tuple(_joined(self.target, p) for p in self.phrases)

    def prompts(self) -> tuple[str, ...]:
        """Every prompt that training asks about, once each."""
        ends = (prompt for pair in self.ends() for prompt in pair)
        return tuple(dict.fromkeys((self.target, *self.targets(), *ends)))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _joined(prompt: str, phrase: str) -> str:
    return ", ".join(filter(None, (prompt, phrase)))
