"""Part b: sliders by six pairs, of eye size and of the brow, which no caption names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _tables_edits import ByPairs, ByWords
from _tables_figures import DISTANCE, OTHERS, OWN, RANGE, Edited
from _tables_report import Ordering, Section, by_seed, ordering_table, pm, ratios, table
from _tables_studio import Edit, Studio, log
from _tables_subjects import BY_PAIRS, TWELVE, Pairs
from concept_sliders.pocket.measuring.prompts import PLAIN

Cells = dict[tuple[str, str], Sequence[Mapping[str, Any]]]  # by concept and method, of each training seed
STRENGTHS = (1.0, 2.0)
METHODS = ("ADDifT", "noise")


def edits_of(studio: Studio, pairs: Pairs | Path, prompt: str) -> dict[str, Callable[[int], Edit]]:
    """Return each method as a function of the training seed; by words, too, where the concept has them."""
    found: dict[str, Callable[[int], Edit]] = {}
    counts = studio.counts
    for strength in STRENGTHS:
        for method in METHODS:
            found[f"pairs, {method}, at {strength:g}"] = lambda seed, method=method, strength=strength: ByPairs(
                pairs, prompt, seed, counts.visual_iterations, method, strength
            )
        for subject in TWELVE if isinstance(pairs, Pairs) else ():
            if subject.attribute == pairs.attribute:
                found[f"words, at {strength:g}"] = lambda seed, subject=subject, strength=strength: ByWords(
                    subject, seed, counts.iterations, strength
                )
    return found


def visual(studio: Studio, folders: Sequence[Path], prompt: str, seeds: range) -> Section:
    """folders: of pairs for a real model, which has no drawn ones. prompt: of their scenes."""
    cells: Cells = {}
    sources: Sequence[Pairs | Path] = BY_PAIRS if studio.is_pocket else folders
    for pairs in sources:
        log.info("%s, by pairs", pairs.name)
        said = PLAIN if studio.is_pocket else prompt
        edited = Edited(attribute=pairs.attribute if isinstance(pairs, Pairs) else "")
        for name, edit in edits_of(studio, pairs, said).items():
            cells[pairs.name, name] = [studio.cell(edit(seed), said, edited, seed) for seed in seeds]
    text = "\n\n".join(
        (
            figures_table(cells, studio.distance),
            ordering_table(orderings(cells)),
        )
    )
    rows = [(f"{concept}: {name}", _ends(of[0]["shown"])) for (concept, name), of in cells.items()]
    figures = {f"{concept}, {name}": of for (concept, name), of in cells.items()}
    caption = "Two people of the first seed: less, without the slider, more"
    return Section("b", text, rows, caption, figures)


def figures_table(cells: Cells, distance: str) -> str:
    rows = []
    for (concept, name), of in cells.items():
        own, others = by_seed(of, OWN) or by_seed(of, RANGE), by_seed(of, OTHERS)
        rows.append((concept, name, pm(own), pm(others), pm(ratios(own, others), 1), pm(by_seed(of, DISTANCE))))
    return table(("", "trained by", "own attribute", "everything else", "own / else", distance), rows)


def orderings(cells: Cells) -> list[Ordering]:
    """A slider by pairs is to turn what its pairs differ in, more than anything else; a line of our own."""
    claim = "{}: {} turns its own attribute further than everything else"
    return [
        Ordering(claim.format(concept, name), by_seed(of, OWN), by_seed(of, OTHERS), source="")
        for (concept, name), of in cells.items()
        if name.startswith("pairs")
    ]


def _ends(shown: Any) -> list[Any]:
    return [image for person in shown for image in person]
