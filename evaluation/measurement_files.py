"""Measurements as files: all numbers as JSON, the table as CSV, both written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..sliders.formats.atomic_write import written_atomically
from .measurements import SliderMeasurements
from .tables import SliderTable, as_csv, as_json

VERSION = 1


def write_measurements(
    path: Path,
    measurements: Sequence[SliderMeasurements],
    tables: Sequence[SliderTable],
    facts: Mapping[str, Any],
) -> None:
    """Write PATH.json and PATH.csv, both or neither.

    facts: what else the JSON says about the run, as plain values. In it, `images` has the scores of every image.
    Raises OSError that names them if they cannot be written.
    """
    content = {
        "version": VERSION,
        **facts,
        "sliders": [as_json(table) for table in tables],
        "images": [image for each in measurements for image in _images(each)],
    }
    write_together(path, {".csv": as_csv(tables), ".json": json.dumps(content, indent=1, ensure_ascii=False)})


def write_together(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts to PATH with these endings, all or none. Raises OSError that names them if they cannot be."""
    try:
        with ExitStack() as files:  # none is put in its place before all are written
            for ending, text in texts.items():
                partial = files.enter_context(written_atomically(path.with_name(path.name + ending)))
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        names = " and ".join(sorted(texts, reverse=True))
        raise OSError(f"Cannot write the measurements to {path}{names}: {error}. Is the folder writable?") from error


def _images(of: SliderMeasurements) -> list[dict[str, Any]]:
    """The scores of every image of a slider."""
    found = []
    for strength in of.strengths:
        scores = {name: values.tolist() for name, values in of.scores(strength).items()}
        for number, index in enumerate(of.indices(strength)):
            planned = of.measured.made[index]
            found.append(
                {
                    "slider": of.name,
                    "strength": strength,
                    "prompt": planned.prompt,
                    "seed": planned.seed,
                    "scores": {name: values[number] for name, values in scores.items()},
                }
            )
    return found
