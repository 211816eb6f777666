"""Measurements as a table, as text, as CSV and as JSON: a row for each slider and strength."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .measurements import DELTA_CLIP, OTHER_READINGS, EditTexts, SliderMeasurements, WholeScores

MOST_MOVED = 4  # readings that the text names


@dataclass(frozen=True)
class Row:
    """One slider at one strength.

    scores: (mean, standard deviation) over the images of each score, by name. frechet: distance to the originals, by
    encoder.
    """

    strength: float
    images: int
    scores: Mapping[str, tuple[float, float]]
    frechet: Mapping[str, float]


@dataclass(frozen=True)
class SliderTable:
    """The rows of one slider, in rising order of strength, and what they come to.

    effect, distortion: the scores that stand for what the slider does, and for what it changes besides; see
    `SliderMeasurements`. movements: how far each reading moves from the lowest strength to the highest.
    """

    name: str
    texts: EditTexts
    effect: str
    distortion: str
    rows: tuple[Row, ...]
    whole: WholeScores
    movements: Mapping[str, float]

    @property
    def effects(self) -> list[tuple[float, float]]:
        """(mean, standard deviation) of the effect at each strength."""
        return [row.scores[self.effect] for row in self.rows]

    @property
    def distortions(self) -> list[tuple[float, float]]:
        return [row.scores[self.distortion] for row in self.rows]


def slider_table(measurements: SliderMeasurements) -> SliderTable:
    """Sum up the measurements of one slider."""
    rows = []
    for strength in measurements.strengths:
        scores = measurements.scores(strength)
        if DELTA_CLIP in scores:
            scores[f"|{DELTA_CLIP}|"] = scores[DELTA_CLIP].abs()
        if measurements.distortion == OTHER_READINGS:
            scores[OTHER_READINGS] = measurements.values(OTHER_READINGS, strength)
        rows.append(
            Row(
                strength,
                len(measurements.indices(strength)),
                {name: _mean_and_spread(values) for name, values in scores.items()},
                measurements.frechet(strength),
            )
        )
    return SliderTable(
        measurements.name,
        measurements.texts,
        measurements.effect,
        measurements.distortion,
        tuple(rows),
        measurements.whole,
        measurements.movements,
    )


def as_text(table: SliderTable) -> str:
    """Lay a slider's table out in lines of even columns, with its scores over all strengths below."""
    columns = [("strength", [f"{row.strength:+g}" if row.strength else "0" for row in table.rows])]
    names = dict.fromkeys([table.effect, f"|{DELTA_CLIP}|", table.distortion])
    for name in (name for name in names if name in table.rows[0].scores):
        columns.append((name, [_pm(*row.scores[name]) for row in table.rows]))
    for name in dict.fromkeys(name for row in table.rows for name in row.frechet):
        cells = [f"{row.frechet[name]:.3g}" if name in row.frechet else "-" for row in table.rows]
        columns.append((f"Fréchet ({name})", cells))
    widths = [max(len(cell) for cell in (head, *cells)) for head, cells in columns]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths))
        for line in zip(*((head, *cells) for head, cells in columns))
    ]
    images = sorted({row.images for row in table.rows})
    count = f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}"
    title = f"{table.name}: effect by {table.effect}, distortion by {table.distortion}; {count} images a strength"
    return "\n".join([title, *lines, *_below(table)])


def _below(table: SliderTable) -> list[str]:
    """What the slider comes to over all strengths, in words."""
    whole, lines = table.whole, []
    if whole.overall_score is not None:
        lines.append(
            f"CR {whole.conceptual_range:.3g}, CSM {whole.conceptual_smoothness:.3g}, "
            f"SP {whole.semantic_preservation:.3g}, OS {whole.overall_score:.3g}"
        )
    if table.movements:
        moved = sorted(table.movements.items(), key=lambda item: -abs(item[1]))[:MOST_MOVED]
        lines.append(f"moved most, end to end: {', '.join(f'{name} {by:+.2f}' for name, by in moved)}")
    return lines


def as_csv(tables: Sequence[SliderTable]) -> str:
    """Write tables as CSV: a line for each slider and strength, with the mean and the spread of every score."""
    scores = list(dict.fromkeys(name for table in tables for row in table.rows for name in row.scores))
    encoders = list(dict.fromkeys(name for table in tables for row in table.rows for name in row.frechet))
    head = [column for name in scores for column in (name, f"{name}, spread")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slider", "strength", "images", *head, *(f"Fréchet ({name})" for name in encoders)])
    for table in tables:
        for row in table.rows:
            values = [value for name in scores for value in row.scores.get(name, ("", ""))]
            writer.writerow(
                [table.name, row.strength, row.images, *values, *(row.frechet.get(name, "") for name in encoders)]
            )
    return text.getvalue()


def as_json(table: SliderTable) -> dict[str, Any]:
    """Return a table as plain values."""
    rows = [
        {
            "strength": row.strength,
            "images": row.images,
            "scores": {name: {"mean": mean, "spread": spread} for name, (mean, spread) in row.scores.items()},
            "frechet": dict(row.frechet),
        }
        for row in table.rows
    ]
    return {
        "slider": table.name,
        **asdict(table.texts),
        "effect": table.effect,
        "distortion": table.distortion,
        "rows": rows,
        **asdict(table.whole),
        "movements": dict(table.movements),
    }


def _mean_and_spread(values: Tensor) -> tuple[float, float]:
    """The mean and the standard deviation of n numbers; 0 for the spread of one."""
    return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0


def _pm(mean: float, spread: float) -> str:
    return f"{mean:.3f} ± {spread:.3f}"
