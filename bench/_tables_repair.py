"""Part e: spoiled images before and after a repair slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _tables_edits import ByWords
from _tables_report import Ordering, Section, by_seed, ordering_table, pm, table
from _tables_studio import SHOWN, Studio, as_bytes, log, small
from _tables_subjects import REAL_REPAIR, REPAIRED, Subject
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.evaluation.scores import frechet_distance
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.pocket.world.shirt_pairs import as_images
from concept_sliders.sliders.stack import Stack
from PIL import Image
from torch import Tensor

DRAWN_SEED = 2**41 + 11  # people that no training has drawn
SPOILED, FRECHET = "share of spoiled images", "Fréchet distance"
BEFORE, AFTER, FURTHER = "before", "slider, at 1", "slider, at 2"
STRENGTHS = {BEFORE: 0.0, AFTER: 1.0, FURTHER: 2.0}
Cells = dict[tuple[str, str], Sequence[Mapping[str, Any]]]  # by condition and strength, of each training seed


@dataclass(frozen=True)
class Condition:
    """How images come to be spoiled. cfg: None for that of all tables."""

    name: str
    prompt: str
    cfg: float | None = None


def conditions(subject: Subject) -> tuple[Condition, ...]:
    """Images that are asked to be bad, and those that the model spoils by itself, which it does without guidance."""
    concept = subject.concept
    return (
        Condition("asked for badly drawn", concept.less),
        Condition("not asked for, without guidance", concept.target, 1.0),
    )


def repair(studio: Studio, photos: Path | None, seeds: range) -> Section:
    """photos: a folder of good images that a real model's are compared with."""
    subject = REPAIRED if studio.is_pocket else REAL_REPAIR
    log.info("repair: %r to %r", subject.concept.less, subject.concept.more)
    good = _good(studio, photos)
    cells: Cells = {
        (condition.name, name): [_cell(studio, subject, condition, strength, good, seed) for seed in seeds]
        for condition in conditions(subject)
        for name, strength in STRENGTHS.items()
    }
    among = "fresh drawings, none of them spoiled" if studio.is_pocket else "the images given"
    text = "\n\n".join(
        (
            f"{studio.counts.people} images a cell; the Fréchet distance is to as many of {among}, by "
            f"{next(iter(studio.instruments.encoders))}.",
            figures_table(cells),
            ordering_table(orderings(cells)),
        )
    )
    rows = [(f"{name}: {strength}", list(of[0]["shown"])) for (name, strength), of in cells.items()]
    figures = {f"{name}, {strength}": of for (name, strength), of in cells.items()}
    return Section("e", text, rows, "The first people of the first seed", figures)


def _cell(
    studio: Studio, subject: Subject, condition: Condition, strength: float, good: Tensor, seed: int
) -> dict[str, Any]:
    edit = ByWords(subject, seed, studio.counts.iterations)

    def measured() -> dict[str, Any]:
        model = studio.model
        if strength:
            model = apply_sliders(model, Stack.of(edit.slider(studio), strength, studio.gate))
        images = studio.people(model, condition.prompt, seed, condition.cfg)
        embed = next(iter(studio.instruments.encoders.values()))
        found: dict[str, Any] = {FRECHET: frechet_distance(embed(images), good)}
        if studio.instruments.probe is not None:
            found[SPOILED] = float((studio.instruments.probe(images)["spoiled"] > 0.5).float().mean())
        return {**found, "shown": as_bytes(small(images[: 3 * SHOWN]))}

    question = (studio.hash, edit.question() if strength else "", strength, asdict(condition), seed)
    return studio.kept("repair", (*question, good.double().sum().item(), studio.sampling), measured)


def _good(studio: Studio, photos: Path | None) -> Tensor:
    """Embeddings of good images, (people, E). Raises ValueError if the folder has not got so many."""
    people, embed = studio.counts.people, next(iter(studio.instruments.encoders.values()))
    if studio.is_pocket:
        return embed(as_images([draw(person.with_(spoiled=False)) for person in portraits(people, DRAWN_SEED)]))
    found = () if photos is None else photos.iterdir()
    files = sorted(path for path in found if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < people:
        raise ValueError(f"Part e compares with {people} good images; there are {len(files)} in {photos}.")
    side = 8 * studio.latent.shape[-1]
    return torch.cat([embed(_read(file, side)) for file in files[:people]])


def _read(file: Path, side: int) -> Tensor:
    """(1, side, side, 3) in 0..1."""
    image = torch.from_numpy(np.asarray(Image.open(file).convert("RGB"))).float().permute(2, 0, 1)[None] / 255
    return F.interpolate(image, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def figures_table(cells: Cells) -> str:
    rows = [
        (name, strength, pm(by_seed(of, SPOILED), 2), pm(by_seed(of, FRECHET)))
        for (name, strength), of in cells.items()
    ]
    return table(("images", "", SPOILED, FRECHET), rows)


def orderings(cells: Cells) -> list[Ordering]:
    """The paper says that a repair slider makes images better."""
    found = []
    for name in dict.fromkeys(name for name, _ in cells):
        for what in (SPOILED, FRECHET):
            before, after = (by_seed(cells[name, strength], what) for strength in (BEFORE, AFTER))
            found.append(Ordering(f"{name}: {what} smaller after repair", before, after))
    return found
