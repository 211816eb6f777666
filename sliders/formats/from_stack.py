"""What of a slider in a stack a file can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..gate import Gate
from ..slider import Slider
from ..stack import Placed


def as_stored(placed: Placed, name: str) -> tuple[Slider, tuple[str, ...]]:
    """A slider with its strength in its weights and its gate in its description; and what is lost, in words.

    Raises ValueError for a swept slider: a file has one strength.
    """
    slider = placed.slider
    if len(set(placed.strength)) > 1:
        raise ValueError(f"Slider '{slider.name}' is swept; take it as it is before the sweep.")
    strength, layers, info, lost = placed.strength[0], slider.layers, slider.info, []
    if strength != 1:
        layers = {layer: change.scaled(strength) for layer, change in layers.items()}
    if placed.gates:
        gate = joined(placed.gates)
        info = replace(info, gate=gate or Gate())
        if gate is None:
            windows = " and ".join(f"{g.start:g} to {g.end:g} with ramp {g.ramp:g}" for g in placed.gates)
            lost.append(f"its {len(placed.gates)} gates ({windows}), which are not one gate together")
    if placed.branch != "both":
        lost.append(f"that it acts on {placed.branch} prompts only")
    return Slider(name, layers, info), tuple(lost)


def joined(gates: Iterable[Gate]) -> Gate | None:
    """The one gate whose factor is the product of these everywhere; None if there is none such."""
    gates = [gate for gate in gates if not gate.always_open]
    ramped = [gate for gate in gates if gate.ramp]
    start = max((gate.start for gate in gates), default=0.0)
    end = min((gate.end for gate in gates), default=1.0)
    if start >= end:
        return None
    if not ramped:
        return Gate(start, end)
    first = ramped[0]  # the others must not cut into it, nor ramp themselves
    alone = len(set(ramped)) == len(ramped) == 1 and (first.start, first.end) == (start, end)
    return first if alone else None
