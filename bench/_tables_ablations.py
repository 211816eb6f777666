"""Part c: what low rank and the preserved phrases are good for, each left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _tables_edits import ByWords
from _tables_figures import ABSOLUTE, DELTA_CLIP, DISTANCE, KEPT, OTHERS, OWN, Edited
from _tables_report import Ordering, Section, by_seed, ordering_table, pm, table
from _tables_studio import Studio, log
from _tables_subjects import Subject

WHOLE, FULL_RANK, NOTHING = "as trained by default", "full rank", "nothing preserved"
Cells = Mapping[str, Sequence[Mapping[str, Any]]]  # by variant, of each training seed


def ablations(studio: Studio, subject: Subject, seeds: range) -> Section:
    """Train a concept that has phrases to preserve three ways. The etas are chosen anew for each."""
    log.info("%s, with low rank and phrases left out", subject.name)
    iterations = studio.counts.iterations
    variants = {
        WHOLE: lambda seed: ByWords(subject, seed, iterations),
        FULL_RANK: lambda seed: ByWords(subject, seed, iterations, changes={"full_rank": True}),
        NOTHING: lambda seed: ByWords(subject.preserving_nothing(), seed, iterations),
    }
    edited = Edited(subject.concept.less, subject.concept.more, subject.attribute, subject.kept)
    cells = {
        name: [studio.cell(edit(seed), subject.concept.target, edited, seed) for seed in seeds]
        for name, edit in variants.items()
    }
    text = "\n\n".join(
        (
            f"The slider for {subject.name}, preserving {', '.join(subject.concept.preserve)}, at strength 1 and -1.",
            figures_table(cells, studio.distance),
            ordering_table(orderings(cells)),
        )
    )
    rows = [(name, [image for person in of[0]["shown"] for image in person]) for name, of in cells.items()]
    return Section("c", text, rows, "Two people of the first seed: less, without the slider, more", cells)


def figures_table(cells: Cells, distance: str) -> str:
    columns = ("", "delta CLIP", "without signs", distance, "own attribute", "what is preserved", "everything else")
    names = (DISTANCE, OWN, KEPT, OTHERS)
    return table(
        columns,
        [
            (
                variant,
                *(pm(by_seed(of, name), 2) for name in (DELTA_CLIP, ABSOLUTE)),
                *(pm(by_seed(of, name)) for name in names),
            )
            for variant, of in cells.items()
        ],
    )


def orderings(cells: Cells) -> list[Ordering]:
    """What the paper's ablation says: both keep the slider on target, and the rest of the image as it was."""

    def of(variant: str, name: str) -> list[float]:
        return by_seed(cells[variant], name)

    found = []
    for variant, what in ((FULL_RANK, "low rank"), (NOTHING, "preserved phrases")):
        claim = f"without {what} delta CLIP, without signs, is smaller"
        found.append(Ordering(claim, of(WHOLE, ABSOLUTE), of(variant, ABSOLUTE)))
        found.append(Ordering(f"without {what} the distance is larger", of(variant, DISTANCE), of(WHOLE, DISTANCE)))
    claim = "without preserved phrases what they name moves further"
    return [*found, Ordering(claim, of(NOTHING, KEPT), of(WHOLE, KEPT))]
