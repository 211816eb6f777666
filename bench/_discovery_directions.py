"""Points 1 to 3 and 6 to 8: what single directions do."""

from __future__ import annotations

from dataclasses import replace

import torch
from _discovery_figures import GROUPS, ceiling, groups_moved, moves_other_than_style, of_groups, purity
from _discovery_studio import ENCODER, Base, Found, Studio
from concept_sliders.discovery.realised import Realised, realised
from concept_sliders.evaluation.measurements import Measured
from concept_sliders.pocket.measuring.probe import COLUMNS
from concept_sliders.pocket.world.portrait import STYLES
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from torch import Tensor

PERSON = "portrait of a person"
FAR = 1.0  # strength at which attributes are looked at, on either side


def by_tests(studio: Studio, base: Base) -> list[str]:
    """Point 1: where the loss, its gradient and the components are checked."""
    return [
        "loss and gradient: tests/unit/discovery/test_objective.py, of every encoder class "
        "tests/host/comfy_host/test_image_encoder.py; components against scikit-learn's: "
        "tests/unit/discovery/test_components.py"
    ]


def realised_directions(studio: Studio, base: Base) -> list[str]:
    """Point 2: the mean change of the embedding over seeds that discovery has not seen, at the proposed number."""
    found = studio.found(base, PERSON, 0)
    count, untrained = len(found.stack), random_like(found.stack)
    figures = [_figures(studio, base, stack, found.directions) for stack in (found.stack, untrained)]
    lines = []
    for name, of in zip(("trained", "untrained"), figures):
        lines.append(
            f"{count} directions, {name}: median cosine {of.own.median():.2f} (aim 0.5 or more), own highest "
            f"{of.own_is_highest.float().mean():.0%} (90 %), mean mutual |cosine| {of.mutual:.2f} (0.2 or less)"
        )
    return lines


def groups_found(studio: Studio, base: Base) -> list[str]:
    """Point 3: groups of attributes that twelve directions of "portrait" move, and the ceiling on drawings."""
    found = studio.found(base, "portrait", 12)
    moved = movements(studio.measured(base, found.stack, "portrait", (-FAR, FAR)), len(found.stack))
    embeddings, readings = studio.drawn(2048)
    best = sorted(ceiling(readings, embeddings, found.directions).items(), key=lambda item: -item[1])
    each = purity(moved).max(1)
    shown = [f"{list(GROUPS)[at]} {moved[k, at]:+.2f} ({share:.0%})" for k, (share, at) in enumerate(zip(*each))]
    named = groups_moved(moved)
    return [
        f"{len(named)} groups moved by 0.3 at a purity of 0.5 (aim 4): {', '.join(named) or 'none'}",
        f"each direction's purest, -{FAR:g} to {FAR:g}: {', '.join(shown)}",
        f"ceiling, |correlation| on drawings: {', '.join(f'{name} {value:.2f}' for name, value in best)}",
    ]


def without_style(studio: Studio, base: Base) -> list[str]:
    """Point 6: how many directions move something else than style, with style words projected out and without."""
    lines = []
    for name, unwanted in (("style projected out", STYLES), ("all there is", ())):
        found = studio.found(base, "portrait", 12, unwanted)
        moved = movements(studio.measured(base, found.stack, "portrait", (-FAR, FAR)), len(found.stack))
        lines.append(f"{name}: {moves_other_than_style(moved).float().mean():.0%} move something else than style")
    return [*lines, "aim: at least half with, fewer without"]


def carried_over(studio: Studio, base: Base) -> list[str]:
    """Point 7: directions of "portrait of a woman" on "portrait of a man"."""
    found = studio.found(base, "portrait of a woman", 8)
    own, other = (
        movements(studio.measured(base, found.stack, f"portrait of a {who}", (-FAR, FAR)), len(found.stack))
        for who in ("woman", "man")
    )
    carried = (own * other).sum(1) / own.square().sum(1).clamp(min=1e-9)
    return [
        f"share of the movement that a man's portrait makes too, median {carried.median():.2f} (aim 0.5); "
        f"{int((carried >= 0.5).sum())} of {len(carried)} directions by half or more"
    ]


def first_steps_skipped(studio: Studio, base: Base) -> list[str]:
    """Point 8: effect and distortion without the first step of few, or the first fifth of many."""
    found = studio.found(base, PERSON, 8)
    start = 1 / base.settings.steps if base.settings.steps <= 8 else 0.2
    late = Stack(tuple(replace(each, gates=(Gate(start),)) for each in found.stack))
    measured = [studio.measured(base, stack, PERSON, (-1.0, 1.0)) for stack in (found.stack, late)]
    lines = []
    for strength, side in ((1.0, "plus"), (-1.0, "minus")):
        whole, gated = (_cost_of(each, found, strength) for each in measured)
        lines.append(
            f"{side} side, from {start:.0%} on: {gated[0] / whole[0]:.0%} of the effect (aim 60 %), distortion "
            f"{gated[1] / whole[1] - 1:+.0%} (aim -30 %)"
        )
    return lines


def random_like(stack: Stack) -> Stack:
    """Return sliders with random factors of the same norms: what training did not make."""
    generator, made = torch.Generator().manual_seed(0), []
    for each in stack:
        layers = {}
        for name, change in each.slider.layers.items():
            parts = (change.down, change.up)
            drawn = [torch.randn(part.shape, generator=generator) for part in parts]
            layers[name] = LowRank(*(d * (part.norm() / d.norm()) for d, part in zip(drawn, parts)))
        made.append(replace(each, slider=Slider(f"{each.slider.name} untrained", layers, each.slider.info)))
    return Stack(tuple(made))


def changes(of: Measured, count: int, strength: float) -> Tensor:
    """Return the mean change of the embedding of each slider at a strength: (K, D)."""
    return torch.stack([_differences(of, of.embeddings[ENCODER], k, strength).mean(0) for k in range(count)])


def movements(of: Measured, count: int) -> Tensor:
    """Return how far each group of readings moves from -FAR to FAR, by slider: (K, groups)."""
    readings = torch.stack([of.readings[name] for name in COLUMNS], dim=1)
    ends = [
        torch.stack([_differences(of, readings, k, strength).mean(0) for k in range(count)])
        for strength in (-FAR, FAR)
    ]
    return of_groups(ends[1] - ends[0])


def _figures(studio: Studio, base: Base, stack: Stack, directions: Tensor) -> Realised:
    measured = studio.measured(base, stack, PERSON, (1.0,))
    return realised(changes(measured, len(stack), 1.0), directions)


def _differences(of: Measured, values: Tensor, slider: int, strength: float) -> Tensor:
    """(n, ...) values of a slider's images, less those of their originals."""
    at = {planned: index for index, planned in enumerate(of.made)}
    chosen = [planned for planned in of.made if (planned.slider, planned.strength) == (slider, strength)]
    return values[[at[each] for each in chosen]] - values[[at[each.original] for each in chosen]]


def _cost_of(of: Measured, found: Found, strength: float) -> tuple[float, float]:
    """The median change along the components, and the mean distance to the originals."""
    along, away = [], []
    for k, direction in enumerate(found.directions):
        moved = _differences(of, of.embeddings[ENCODER], k, strength)
        along.append(float((moved @ direction).mean()))
        away.append(float(moved.square().sum(1).mean() / 2))  # 1 - cos, of unit vectors
    return float(torch.tensor(along).median()), sum(away) / len(away)
