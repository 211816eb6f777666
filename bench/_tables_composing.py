"""Part d: many sliders at once, and how far each still moves its own attribute."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _tables_edits import ByPairs, ByWords
from _tables_figures import DELTA_CLIP, DISTANCE, OWN, RANGE, Edited
from _tables_report import Ordering, Section, by_seed, ordering_table, pm, table
from _tables_studio import Studio, log
from _tables_subjects import BY_PAIRS, UNNAMED_BY_PAIRS, Subject
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.pocket.measuring.prompts import PLAIN
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

TRACKED = 5  # sliders of a stack that are turned one by one, its first ones
OTHERS_AT = 0.5  # the others stand at random strengths of this size at most
TRAININGS = 3  # of each concept, that a stack is filled from
Cells = dict[int, list[Mapping[str, Any]]]  # by the number of sliders, 1 for each alone, of each training seed
SHARE = "share of it alone"


@dataclass(frozen=True)
class Member:
    """A slider of the stack, and what it is for."""

    edit: ByWords | ByPairs
    edited: Edited
    prompt: str

    @property
    def is_read(self) -> bool:
        """True if there is an attribute or a text to tell how far it turns."""
        return bool(self.edited.attribute or self.edited.more)


@dataclass(frozen=True)
class Among:
    """A slider turned while others act. position: in the stack. others: (people, sliders) strengths, this one's not
    used."""

    members: Sequence[Member]
    position: int
    others: tuple[tuple[float, ...], ...]

    def question(self) -> Any:
        return "among", self.position, [member.edit.question() for member in self.members], self.others

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        sliders = [member.edit.slider(studio) for member in self.members]
        model = apply_sliders(studio.model, self.stack(sliders, float(sign), entries).gated(studio.gate))
        prompt = self.members[self.position].prompt
        return model, studio.said(prompt)[prompt]

    def stack(self, sliders: Sequence[Slider], strength: float, entries: slice) -> Stack:
        """One strength for every slider and each of these people."""
        columns = [list(column) for column in zip(*self.others[entries])]
        columns[self.position] = [strength] * len(columns[self.position])
        return sum((Stack.of(slider, column) for slider, column in zip(sliders, columns, strict=True)), Stack())


def members_of(studio: Studio, subjects: Sequence[Subject], folders: Sequence[Path], seed: int) -> list[Member]:
    """Return what stacks are filled with: concepts by words, trained from this seed and, after those, from the next;
    then those by pairs; and, of the pocket world, what no caption names."""
    counts, found = studio.counts, []
    trainings = [(seed + later) % TRAININGS for later in range(TRAININGS)]
    for training in trainings:
        for subject in subjects:
            concept = subject.concept
            edited = Edited(concept.less, concept.more, subject.attribute, subject.kept)
            found.append(Member(ByWords(subject, training, counts.iterations), edited, concept.target))
    sources = BY_PAIRS if studio.is_pocket else folders
    by_pairs = [(pairs, training) for training in trainings for pairs in sources]
    by_pairs += [(pairs, seed) for pairs in (UNNAMED_BY_PAIRS if studio.is_pocket else ())]
    for pairs, training in by_pairs:
        edit = ByPairs(pairs, PLAIN, training, counts.visual_iterations)
        found.append(Member(edit, Edited(attribute=getattr(pairs, "attribute", "")), PLAIN))
    return found


def strengths_of(seed: int, people: int, sliders: int) -> tuple[tuple[float, ...], ...]:
    """(people, sliders) random strengths; a longer stack has those of a shorter one, and more."""
    columns = [
        OTHERS_AT * (2 * torch.rand(people, generator=torch.Generator().manual_seed(1000 * seed + slider)) - 1)
        for slider in range(sliders)
    ]
    return tuple(tuple(row) for row in torch.stack(columns, dim=1).tolist())


def composing(
    studio: Studio, subjects: Sequence[Subject], folders: Sequence[Path], counts: Sequence[int], seeds: range
) -> Section:
    """counts: of sliders in a stack."""
    cells: Cells = {count: [] for count in (1, *counts)}
    there = len(members_of(studio, subjects, folders, 0))
    for seed in seeds:
        members = members_of(studio, subjects, folders, seed)
        tracked = [at for at, member in enumerate(members) if member.is_read][:TRACKED]
        alone = [_turned(studio, members, at, seed, alone=True) for at in tracked]
        cells[1].append(_mean(alone, alone))
        for count in (count for count in counts if count <= there):
            log.info("%d sliders at once, seed %d", count, seed)
            among = [_turned(studio, members[:count], at, seed) for at in tracked if at < count]
            cells[count].append(_mean(among, alone))
    left_out = [count for count in counts if count > there]
    note = (
        f" There are {there} sliders, so that stacks of {', '.join(map(str, left_out))} are left out."
        if left_out
        else ""
    )
    text = "\n\n".join(
        (
            f"The first {TRACKED} sliders of each stack, or as many as it has, turned one by one from -1 to 1, the "
            f"others at random strengths from {-OTHERS_AT:g} to {OTHERS_AT:g}, new ones in every image.{note}",
            figures_table(cells, studio.distance),
            ordering_table(orderings(cells)),
        )
    )
    rows = [
        (f"{count} sliders" if count > 1 else "alone", [image for person in of[0]["shown"] for image in person])
        for count, of in cells.items()
        if of
    ]
    caption = "Two people of the first seed, and the first slider of each stack: less, without any, more"
    return Section("d", text, rows, caption, {str(count): of for count, of in cells.items()})


def _turned(studio: Studio, members: Sequence[Member], at: int, seed: int, alone: bool = False) -> dict[str, Any]:
    """Return the cell of a slider of a stack. alone: only this one acts."""
    people = studio.counts.people
    chosen, position = ([members[at]], 0) if alone else (members, at)
    others = ((0.0,),) * people if alone else strengths_of(seed, people, len(members))
    edit = Among(chosen, position, others)
    return studio.cell(edit, members[at].prompt, members[at].edited, seed)


def _mean(among: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean figures of the sliders that were turned, and which share it is of what they move alone."""
    alone = alone[: len(among)]
    own = OWN if all(OWN in each for each in alone) else RANGE
    found: dict[str, Any] = {
        name: statistics.fmean(each[name] for each in among)
        for name in (OWN, RANGE, DELTA_CLIP, DISTANCE)
        if all(name in each for each in among)
    }
    if before := statistics.fmean(each[own] for each in alone):
        found[SHARE] = found[own] / before
    return {**found, "shown": among[0]["shown"]}


def figures_table(cells: Cells, distance: str) -> str:
    rows = [
        (str(count), *(pm(by_seed(of, name), 2) for name in (OWN, RANGE, SHARE)), pm(by_seed(of, DISTANCE)))
        for count, of in cells.items()
    ]
    return table(("sliders", "own attribute", "CLIP range", SHARE, distance), rows)


def orderings(cells: Cells) -> list[Ordering]:
    """The paper shows stacks of up to fifty in pictures; what counts as still working is ours."""
    return [
        Ordering(
            f"of {count}, each moves its attribute at least half as far as alone", by_seed(of, SHARE), [0.5] * len(of)
        )
        for count, of in cells.items()
        if count > 1
    ]
