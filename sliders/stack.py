"""Stacks: sliders with strengths and gates, in order. Every operation is pure and returns a new stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite

import torch
from torch import Tensor

from .gate import Gate, PercentToSigma
from .slider import Slider

BRANCHES = ("both", "positive", "negative")


@dataclass(frozen=True)
class Placed:
    """One slider of a stack.

    strength: one value for all rows of a batch, or one value per row.
    gates: the windows in which it acts; where there are several their factors multiply.
    branch: the part of classifier-free guidance in which it acts: "both", "positive" or "negative" prompts.
    Raises ValueError if a strength is missing or not finite, or there is no such branch.
    """

    slider: Slider
    strength: tuple[float, ...] = (1.0,)
    gates: tuple[Gate, ...] = ()
    branch: str = "both"

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise ValueError(f"A slider acts on one of {', '.join(BRANCHES)}; got {self.branch!r}.")
        if not self.strength or not all(isfinite(value) for value in self.strength):
            raise ValueError(
                f"Slider '{self.slider.name}': strengths must be finite numbers, at least one; got {self.strength}."
            )

    @property
    def is_zero(self) -> bool:
        """Whether it stands at zero in every row."""
        return not any(self.strength)

    @property
    def is_gated(self) -> bool:
        """Whether its factor changes during sampling."""
        return not all(gate.always_open for gate in self.gates)

    @property
    def is_steady(self) -> bool:
        """Whether it acts alike in all rows, and changes at the borders of its gates only."""
        ramped = any(gate.ramp for gate in self.gates)
        return len(set(self.strength)) == 1 and self.branch == "both" and not ramped

    def factor_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """The product of its gates' factors at a noise level, in [0, 1]."""
        factor = 1.0
        for gate in self.gates:
            factor *= gate.factor_at(sigma, percent_to_sigma)
        return factor


@dataclass(frozen=True)
class Stack:
    """Sliders acting together, in order: the value of a SLIDERS socket.

    Raises ValueError if two of its sliders are swept over different numbers of rows.
    """

    placed: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(p.strength): p.slider.name for p in self.placed if len(p.strength) > 1}
        if len(counts) > 1:
            (one, name_one), (other, name_other) = list(counts.items())[:2]
            raise ValueError(
                f"Slider '{name_one}' has strengths for {one} rows and slider '{name_other}' for {other}; "
                "all swept sliders of a stack must have the same number of rows."
            )

    @staticmethod
    def of(slider: Slider, strength: float | Sequence[float] = 1.0, gate: Gate | None = None) -> Stack:
        """A stack of one slider, at one strength or at one strength per row."""
        values = (strength,) if isinstance(strength, (int, float)) else strength
        return Stack((Placed(slider, tuple(float(v) for v in values), () if gate is None else (gate,)),))

    def __len__(self) -> int:
        return len(self.placed)

    def __iter__(self) -> Iterator[Placed]:
        return iter(self.placed)

    def __getitem__(self, index: int) -> Placed:
        return self.placed[index]

    def __add__(self, other: Stack) -> Stack:
        """Both stacks together; a slider in both acts with the sum of its strengths."""
        return Stack(self.placed + other.placed)

    @property
    def rows(self) -> int:
        """How many batch rows it has strengths for: 1 if every slider has one strength for all rows."""
        return max((len(p.strength) for p in self.placed), default=1)

    @property
    def is_gated(self) -> bool:
        """Whether any slider's factor changes during sampling."""
        return any(p.is_gated for p in self.placed)

    @property
    def steady_states(self) -> int:
        """How many different sets of its steady sliders act one after the other, as their gates open and close."""
        steady = [p for p in self.placed if p.is_steady and not p.is_zero]
        borders = sorted({0.0, 1.0} | {at for p in steady for gate in p.gates for at in (gate.start, gate.end)})
        middles = [(a + b) / 2 for a, b in zip(borders, borders[1:])]
        acting = {tuple(all(gate.factor(at) for gate in p.gates) for p in steady) for at in middles}
        return sum(any(each) for each in acting)

    def scaled(self, factor: float) -> Stack:
        """Every strength times `factor`."""
        return Stack(tuple(replace(p, strength=tuple(v * factor for v in p.strength)) for p in self.placed))

    def gated(self, gate: Gate) -> Stack:
        """Every slider behind one more gate; the factors of several gates multiply."""
        return Stack(tuple(replace(p, gates=(*p.gates, gate)) for p in self.placed))

    def on(self, branch: str) -> Stack:
        """Every slider acting in this part of classifier-free guidance only, see `Placed`; "both" changes nothing.

        Raises ValueError if one of them acts in the other part only already.
        """
        if branch == "both":
            return self
        for p in self.placed:
            if p.branch not in ("both", branch):
                raise ValueError(f"Slider '{p.slider.name}' acts on {p.branch} prompts only: none would be left.")
        return Stack(tuple(replace(p, branch=branch) for p in self.placed))

    def swept(self, position: int, values: Sequence[float], repeats: int = 1) -> Stack:
        """One slider set to each value in turn, one value a row: a sweep in one batch.

        position: which slider, counted from 0. Its strength is replaced; the others keep theirs in all rows.
        repeats: the number of latents swept, n. Rows are ordered latent by latent: row b of the
            n * len(values) rows has the strength values[b % len(values)].
        Raises ValueError if there is no such slider, no value, or `repeats` is below 1.
        """
        if not 0 <= position < len(self):
            raise ValueError(
                f"There is no slider {position + 1} to sweep: the stack has {len(self)}, counted from 1."
            )
        if not len(values) or repeats < 1:
            raise ValueError(
                f"A sweep needs at least one value and one latent; got {len(values)} values and {repeats} latents."
            )
        strength = tuple(float(v) for v in values) * repeats
        placed = list(self.placed)
        placed[position] = replace(placed[position], strength=strength)
        return Stack(tuple(placed))

    def without_zeros(self) -> Stack:
        """The stack without the sliders that stand at zero in every row."""
        return Stack(tuple(p for p in self.placed if not p.is_zero))

    def strengths(self, sigma: float | None = None, percent_to_sigma: PercentToSigma | None = None) -> Tensor:
        """The strength of every slider in every row at a noise level: float32 of shape (rows, sliders).

        sigma: the noise level. percent_to_sigma: the model's decreasing map from fraction of sampling to it.
        Without them the gates are left out of account.
        """
        timed = sigma is not None and percent_to_sigma is not None
        if timed:  # asked once, however many gates there are
            percent_to_sigma = cache(percent_to_sigma)
        columns = []
        for p in self.placed:
            factor = p.factor_at(sigma, percent_to_sigma) if timed else 1.0
            values = p.strength * (self.rows // len(p.strength))
            columns.append([value * factor for value in values])
        if not columns:
            return torch.zeros(1, 0)
        return torch.tensor(columns, dtype=torch.float32).T.contiguous()  # (sliders, rows) -> (rows, sliders)
