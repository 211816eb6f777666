"""Part a: sliders by words against both published baselines and the audition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _tables_edits import Audition, ByWords, Composition, InThePrompt
from _tables_figures import ABSOLUTE, DELTA_CLIP, DISTANCE, OTHERS, OWN, RANGE, Edited
from _tables_report import Ordering, Section, by_seed, mean_over, ordering_table, pm, ratios, table
from _tables_studio import Edit, Studio, log
from _tables_subjects import Subject

MORE = 2  # of what a cell shows: less, without, more
PROMPT, COMPOSED, AUDITION = "attribute in the prompt", "composition by guidance", "audition, at 1"
SLIDER, TURNED_FURTHER = "slider, at 1", "slider, at 2"
Cells = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by concept, by method, of each training seed

METHODS: dict[str, Callable[[Subject, int, int], Edit]] = {
    PROMPT: lambda subject, seed, iterations: InThePrompt(subject),
    COMPOSED: lambda subject, seed, iterations: Composition(subject),
    AUDITION: lambda subject, seed, iterations: Audition(subject, seed),
    SLIDER: ByWords,
    TURNED_FURTHER: lambda subject, seed, iterations: ByWords(subject, seed, iterations, 2.0),
}


def edited_by(subject: Subject) -> Edited:
    return Edited(subject.concept.less, subject.concept.more, subject.attribute, subject.kept)


def cells_of(studio: Studio, subjects: Sequence[Subject], seeds: range) -> Cells:
    """Measure every method on every concept."""
    found: dict[str, dict[str, list]] = {}
    for subject in subjects:
        log.info("%s: %r to %r", subject.name, subject.concept.less, subject.concept.more)
        found[subject.name] = {
            name: [
                studio.cell(
                    *(edit(subject, seed, studio.counts.iterations), subject.concept.target, edited_by(subject), seed)
                )
                for seed in seeds
            ]
            for name, edit in METHODS.items()
        }
    return found


def textual(studio: Studio, subjects: Sequence[Subject], seeds: range) -> Section:
    cells = cells_of(studio, subjects, seeds)
    text = "\n\n".join(
        (
            f"Means over {', '.join(cells)}.",
            methods_table(cells, studio.distance),
            "Concept by concept, delta CLIP in points and, in brackets, the distance:",
            concepts_table(cells),
            ordering_table(orderings(cells)),
        )
    )
    methods = ", ".join(METHODS)
    rows = [
        (name, [of[PROMPT][0]["shown"][0, 1], *(each[0]["shown"][0, MORE] for each in of.values())])
        for name, of in cells.items()
    ]
    return Section(
        "a", text, rows, f"The first image of the first seed without any edit, then towards more: {methods}", cells
    )


def methods_table(cells: Cells, distance: str) -> str:
    columns = ("", "delta CLIP", "without signs", distance, "own attribute", "everything else", "own / else")
    rows = []
    for method in METHODS:
        of = [each[method] for each in cells.values()]
        own, others = mean_over(of, OWN) or mean_over(of, RANGE), mean_over(of, OTHERS)
        clip = [pm(mean_over(of, name), 2) for name in (DELTA_CLIP, ABSOLUTE)]
        rows.append((method, *clip, pm(mean_over(of, DISTANCE)), pm(own), pm(others), pm(ratios(own, others), 1)))
    return table(columns, rows)


def concepts_table(cells: Cells) -> str:
    def cell(of: Sequence[Mapping[str, Any]]) -> str:
        return f"{pm(by_seed(of, DELTA_CLIP), 2)} ({pm(by_seed(of, DISTANCE))})"

    return table(("", *METHODS), [(name, *map(cell, of.values())) for name, of in cells.items()])


def orderings(cells: Cells) -> list[Ordering]:
    """What the paper says of its sliders beside each baseline: they edit further, and leave more as it was."""

    def of(method: str, name: str) -> list[float]:
        return mean_over([each[method] for each in cells.values()], name)

    found = []
    for slider in (SLIDER, TURNED_FURTHER):
        for baseline in (PROMPT, COMPOSED):
            claim = f"{slider}: delta CLIP, without signs, above {baseline}"
            found.append(Ordering(claim, of(slider, ABSOLUTE), of(baseline, ABSOLUTE)))
            claim = f"{slider}: distance below {baseline}"
            found.append(Ordering(claim, of(baseline, DISTANCE), of(slider, DISTANCE)))
    own = [ratios(of(method, OWN), of(method, OTHERS)) for method in (SLIDER, PROMPT)]
    return [*found, Ordering(f"{SLIDER}: own attribute over everything else above {PROMPT}", *own, source="")]
