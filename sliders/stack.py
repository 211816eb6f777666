"""Stacks: sliders with strengths and gates, in order. Every operation is pure and returns a new stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite

import torch
from torch import Tensor

from .gate import Gate, PercentToSigma, combined_gate
from .slider import Slider
from .units import RAW, rescaled, strengths_in

COND_OR_UNCOND = ("both", "cond", "uncond")


@dataclass(frozen=True)
class StackedSlider:
    """One slider of a stack, with how it acts there.

    strength: one value for all entries of a batch, or one value per batch entry.
    gates: the windows in which it acts; the factors of several multiply.
    cond_or_uncond: the predictions of classifier-free guidance in which it acts: "cond" (the positive prompt),
        "uncond" (the negative prompt, and any other that a guider asks for) or "both".
    Raises ValueError if a strength is missing or not finite, or `cond_or_uncond` is something else.
    """

    slider: Slider
    strength: tuple[float, ...] = (1.0,)
    gates: tuple[Gate, ...] = ()
    cond_or_uncond: str = "both"

    def __post_init__(self) -> None:
        if self.cond_or_uncond not in COND_OR_UNCOND:
            raise ValueError(f"A slider acts on one of {', '.join(COND_OR_UNCOND)}; got {self.cond_or_uncond!r}.")
        if not self.strength or not all(isfinite(value) for value in self.strength):
            raise ValueError(
                f"Slider '{self.slider.name}': strengths must be finite numbers, at least one; got {self.strength}."
            )

    @property
    def is_zero(self) -> bool:
        """True if its strength is zero in every batch entry."""
        return not any(self.strength)

    @property
    def is_gated(self) -> bool:
        """True if its factor changes during sampling."""
        return not all(gate.always_open for gate in self.gates)

    @property
    def is_steady(self) -> bool:
        """True if it acts alike in all batch entries, and changes at the borders of its gates only."""
        ramped = any(gate.ramp for gate in self.gates)
        return len(set(self.strength)) == 1 and self.cond_or_uncond == "both" and not ramped

    @property
    def window(self) -> tuple[tuple[Gate, ...], str]:
        """When it acts: its gates that are not always open, and cond or uncond."""
        return tuple(gate for gate in self.gates if not gate.always_open), self.cond_or_uncond

    def factor_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """Return the product of its gates' factors at a sigma, in [0, 1]."""
        factor = 1.0
        for gate in self.gates:
            factor *= gate.factor_at(sigma, percent_to_sigma)
        return factor

    def as_slider(self, name: str) -> tuple[Slider, tuple[str, ...]]:
        """Return what a file can hold of it: a slider of that name with the strength in its weights and the gate in
        its info; and, in words, what is lost.

        Raises ValueError for a swept slider: a file has one strength.
        """
        if len(set(self.strength)) > 1:
            raise ValueError(f"Slider '{self.slider.name}' is swept; take it as it is before the sweep.")
        strength, layers, info, lost = self.strength[0], self.slider.layers, self.slider.info, []
        if strength != 1:
            layers = {layer: change.scaled(strength) for layer, change in layers.items()}
            info = info.at_strength(strength)
        if self.gates:
            gate = combined_gate(self.gates)
            info = replace(info, gate=gate or Gate())
            if gate is None:
                windows = " and ".join(f"{g.start:g} to {g.end:g} with ramp {g.ramp:g}" for g in self.gates)
                lost.append(f"its {len(self.gates)} gates ({windows}), which are not one gate together")
        if self.cond_or_uncond != "both":
            lost.append(f"that it acts on {self.cond_or_uncond} only")
        return Slider(name, layers, info), tuple(lost)


@dataclass(frozen=True)
class Stack:
    """Sliders acting together, in order: the value of a SLIDERS socket.

    Raises ValueError if two of its sliders are swept over different numbers of batch entries.
    """

    sliders: tuple[StackedSlider, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(s.strength): s.slider.name for s in self.sliders if len(s.strength) > 1}
        if len(counts) > 1:
            (one, name_one), (other, name_other) = list(counts.items())[:2]
            raise ValueError(
                f"Slider '{name_one}' has strengths for {one} batch entries and slider '{name_other}' for {other}; "
                "all swept sliders of a stack must have the same number."
            )

    @staticmethod
    def of(slider: Slider, strength: float | Sequence[float] = 1.0, gate: Gate | None = None) -> Stack:
        """Make a stack of one slider, at one strength or at one strength per batch entry; an open gate is none."""
        values = (strength,) if isinstance(strength, (int, float)) else strength
        gates = () if gate is None or gate.always_open else (gate,)
        return Stack((StackedSlider(slider, tuple(float(v) for v in values), gates),))

    def __len__(self) -> int:
        return len(self.sliders)

    def __iter__(self) -> Iterator[StackedSlider]:
        return iter(self.sliders)

    def __getitem__(self, index: int) -> StackedSlider:
        return self.sliders[index]

    def __add__(self, other: Stack) -> Stack:
        """Join two stacks; a slider in both acts with the sum of its strengths."""
        return Stack(self.sliders + other.sliders)

    @property
    def batch_size(self) -> int:
        """The number of batch entries it has strengths for; 1 if every slider has one strength for all of them."""
        return max((len(s.strength) for s in self.sliders), default=1)

    @property
    def is_gated(self) -> bool:
        """True if any slider's factor changes during sampling."""
        return any(s.is_gated for s in self.sliders)

    @property
    def steady_states(self) -> int:
        """The number of different sets of its steady sliders that act in turn, as their gates open and close."""
        steady = [s for s in self.sliders if s.is_steady and not s.is_zero]
        borders = sorted({0.0, 1.0} | {at for s in steady for gate in s.gates for at in (gate.start, gate.end)})
        middles = [(a + b) / 2 for a, b in zip(borders, borders[1:])]
        acting = {tuple(all(gate.factor(at) for gate in s.gates) for s in steady) for at in middles}
        return sum(any(each) for each in acting)

    def scaled(self, factor: float, units: str = RAW) -> Stack:
        """Multiply every strength by a factor, or, in calibrated units, every effect; see `units.rescaled`."""
        return Stack(tuple(replace(s, strength=rescaled(units, s.slider, s.strength, factor)) for s in self.sliders))

    def gated(self, gate: Gate) -> Stack:
        """Put every slider behind one more gate; the factors of several gates multiply."""
        return Stack(tuple(replace(s, gates=(*s.gates, gate)) for s in self.sliders))

    def restricted_to(self, cond_or_uncond: str) -> Stack:
        """Let every slider act on cond or on uncond only, see `StackedSlider`; "both" changes nothing.

        Raises ValueError if one of them is restricted to the other already.
        """
        if cond_or_uncond == "both":
            return self
        for s in self.sliders:
            if s.cond_or_uncond not in ("both", cond_or_uncond):
                raise ValueError(f"Slider '{s.slider.name}' acts on {s.cond_or_uncond} only: nothing would be left.")
        return Stack(tuple(replace(s, cond_or_uncond=cond_or_uncond) for s in self.sliders))

    def picked(self, position: int, strength: float, units: str = RAW) -> Stack:
        """Return a stack of one of the sliders, with its gates and a strength of its own.

        position: which slider, counted from 0. units: of the strength.
        Raises ValueError if there is no such slider.
        """
        self._check(position, "pick")
        placed = self.sliders[position]
        return Stack((replace(placed, strength=strengths_in(units, placed.slider, [strength])),))

    def swept(self, position: int, values: Sequence[float], repeats: int = 1, units: str = RAW) -> Stack:
        """Set one slider to each value in turn, one value per batch entry: a sweep in one batch.

        position: which slider, counted from 0. Its strength is replaced; the others keep theirs in all entries.
        repeats: the number of latents swept, n. Entries are ordered latent by latent: entry b of the
            n * len(values) has the strength values[b % len(values)].
        units: of the values.
        Raises ValueError if there is no such slider, no value, or `repeats` is below 1.
        """
        self._check(position, "sweep")
        if not len(values) or repeats < 1:
            raise ValueError(
                f"A sweep needs at least one value and one latent; got {len(values)} values and {repeats} latents."
            )
        sliders = list(self.sliders)
        strength = strengths_in(units, sliders[position].slider, map(float, values)) * repeats
        sliders[position] = replace(sliders[position], strength=strength)
        return Stack(tuple(sliders))

    def strengths(self, sigma: float | None = None, percent_to_sigma: PercentToSigma | None = None) -> Tensor:
        """Return every slider's strength in every batch entry: float32 of shape (B, sliders), B = `batch_size`.

        sigma: of the evaluation. percent_to_sigma: the model's decreasing map from fraction of sampling to sigma.
        Without both the gates are left out of account.
        """
        factors = [1.0] * len(self)
        if sigma is not None and percent_to_sigma is not None:
            percent_to_sigma = cache(percent_to_sigma)  # evaluated once for each boundary, for all gates
            factors = [s.factor_at(sigma, percent_to_sigma) for s in self.sliders]
        columns = []
        for s, factor in zip(self.sliders, factors):
            values = s.strength * (self.batch_size // len(s.strength))
            columns.append([value * factor for value in values])
        if not columns:
            return torch.zeros(1, 0)
        return torch.tensor(columns, dtype=torch.float32).T.contiguous()  # (sliders, B) -> (B, sliders)

    def _check(self, position: int, verb: str) -> None:
        if not 0 <= position < len(self):
            raise ValueError(
                f"There is no slider {position + 1} to {verb}: the stack has {len(self)}, counted from 1."
            )
