"""What `bench tables` leaves behind: pictures, figures as JSON, the tables' page, and the page to choose on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _tables_ab import Pair, page
from _tables_options import PAGE
from _tables_report import Section, as_jpeg, written_into
from _tables_studio import Studio
from _tables_subjects import Subject
from _tables_textual import COMPOSED, PROMPT, SLIDER, cells_of
from concept_sliders.devtools.steps import write_whole
from concept_sliders.pocket.measuring.sheet import contact_sheet
from PIL import Image

SCALE, SHEET_BYTES = 2, 60_000  # of the sheets that people compare


def write_picture(section: Section, folder: Path) -> None:
    """Write a part's picture into a folder."""
    if section.rows:
        sheet = contact_sheet([(label, _pictures(images)) for label, images in section.rows], scale=1)
        (folder / section.picture).write_bytes(as_jpeg(sheet))


def write_docs(section: Section, text: str) -> None:
    """Write a part into the page of the documentation, and its picture beside that."""
    write_picture(section, PAGE.parent)
    write_whole(PAGE, written_into(PAGE.read_text(encoding="utf-8"), section.part, text))


def write_figures(found: Mapping[str, Any], path: Path) -> None:
    write_whole(path, json.dumps(_plain(found), indent=1))


def _pictures(images: Any) -> torch.Tensor:
    return torch.stack(list(images)).float() / 255


def _plain(value: Any) -> Any:
    """Return figures as JSON has them, without images."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if not isinstance(each, torch.Tensor)}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def compared(studio: Studio, subjects: Sequence[Subject], seed: int = 0) -> str:
    """Return the page on which people choose between a slider and each baseline."""
    pairs = []
    for subject in subjects:
        of = {name: cells[0]["shown"] for name, cells in cells_of(studio, [subject], range(1))[subject.name].items()}
        for person in range(len(of[SLIDER])):
            original = _sheet(of[SLIDER][person][1:2])
            ours, *theirs = (_sheet(of[name][person][[0, 2]]) for name in (SLIDER, PROMPT, COMPOSED))
            task = f"{subject.name}, from “{subject.concept.less}” to “{subject.concept.more}”"
            pairs += [Pair(task, rival, original, ours, sheet) for rival, sheet in zip((PROMPT, COMPOSED), theirs)]
    return page(pairs, seed)


def _sheet(images: torch.Tensor) -> bytes:
    """(n, h, w, 3) uint8 side by side, as JPEG."""
    side_by_side = Image.fromarray(torch.cat(list(images), dim=1).numpy())
    size = (side_by_side.width * SCALE, side_by_side.height * SCALE)
    return as_jpeg(side_by_side.resize(size, Image.Resampling.LANCZOS), SHEET_BYTES)
