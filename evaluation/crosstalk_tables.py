"""Cross-talk in words, as a table, as CSV and as JSON, from which the effects can be read again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .crosstalk import Effects
from .measurement_files import write_together

VERSION = 1
MOST_NAMED = 3  # other effects of a slider that its sentence names
SMALLEST_NAMED = 0.1  # of the slider's own effect
SMALLEST_SHOWN = 0.01  # of the columns that no slider is for
MOST_COLUMNS = 10  # of the table and the picture, beside which the files have all


def sentence(effects: Effects, slider: int) -> str:
    """Say what a slider moves: what it is for, and what else by more than chance and a tenth of that."""
    own, row = effects.own[slider], effects.matrix[slider].tolist()
    beyond, least = effects.beyond_chance[slider].tolist(), SMALLEST_NAMED * abs(row[own])
    others = [j for j in range(len(row)) if j != own and beyond[j] and abs(row[j]) >= least]
    others = sorted(others, key=lambda j: -abs(row[j]))[:MOST_NAMED]
    towards = "towards " if effects.encoder else ""
    moved = ", ".join(f"{towards}{effects.columns[j]} by {row[j]:+.2f}" for j in others)
    besides = f"also moves {moved}" if moved else "moves nothing else by more than chance"
    if not beyond[own]:
        itself = "images one way" if effects.encoder else effects.columns[own]
        return f"{effects.sliders[slider]} does not move {itself} by more than chance; it {besides}."
    itself = "" if effects.encoder else f" moves {effects.columns[own]} by {row[own]:+.2f}; it"
    return f"{effects.sliders[slider]}{itself} {besides}."


def as_text(effects: Effects, cosines: Tensor) -> str:
    """Lay out both matrices in lines of even columns: effects with their standard errors, and cosines (K, K)."""
    shown = shown_columns(effects)
    read = f"directions in {effects.encoder}, in parts of own effects" if effects.encoder else "readings of the probe"
    rows = [
        [_pm(float(effects.matrix[i, j]), float(effects.errors[i, j])) for j in shown]
        for i in range(len(effects.sliders))
    ]
    moved = _lines(effects.sliders, [effects.columns[j] for j in shown], rows)
    alike = _lines(effects.sliders, effects.sliders, [[f"{value:+.2f}" for value in row] for row in cosines.tolist()])
    title = (
        f"Effect of each slider from strength 0 to {effects.strength:.3g}, with its standard error, over "
        f"{effects.series} prompts and seeds; {read}"
    )
    return "\n".join([title, *moved, "Cosines of the sliders' weight changes", *alike])


def shown_columns(effects: Effects) -> list[int]:
    """Return the columns to look at: those that sliders are for, in the sliders' order, then those moved most."""
    own = list(dict.fromkeys(effects.own))
    beyond = torch.where(effects.beyond_chance, effects.matrix.abs(), 0.0).amax(0).tolist()
    others = [j for j in range(len(effects.columns)) if j not in own and beyond[j] >= SMALLEST_SHOWN]
    return own + sorted(others, key=lambda j: -beyond[j])[: max(0, MOST_COLUMNS - len(own))]


def as_csv(effects: Effects, cosines: Tensor) -> str:
    """Write both matrices as CSV: a line for each slider, with each effect, its error, and each cosine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [cell for column in effects.columns for cell in (column, f"{column}, standard error")]
    writer.writerow(["slider", "is for", *head, *(f"cosine with {name}" for name in effects.sliders)])
    for i, name in enumerate(effects.sliders):
        pairs = zip(effects.matrix[i].tolist(), effects.errors[i].tolist())
        cells = [cell for pair in pairs for cell in pair]
        writer.writerow([name, effects.columns[effects.own[i]], *cells, *cosines[i].tolist()])
    return text.getvalue()


def as_json(effects: Effects, **more: Any) -> str:
    """Return effects as JSON, for `effects_from`. more: what else it says, as plain values."""
    plain = {**asdict(effects), "matrix": effects.matrix.tolist(), "errors": effects.errors.tolist()}
    return json.dumps({"version": VERSION, "effects": plain, **more}, indent=1, ensure_ascii=False)


def effects_from(text: str) -> Effects:
    """Read effects from what `as_json` wrote. Raises ValueError if it is something else."""
    try:
        plain = json.loads(text)["effects"]
        values: dict[str, Any] = {name: plain[name] for name in ("strength", "series", "encoder")}
        values |= {name: tuple(plain[name]) for name in ("sliders", "hashes", "columns", "own")}
        values |= {name: torch.tensor(plain[name], dtype=torch.float64) for name in ("matrix", "errors")}
        effects = Effects(**values)
        size = (len(effects.hashes), len(effects.columns))
        if not (effects.matrix.shape == effects.errors.shape == size and effects.matrix.isfinite().all()):
            raise ValueError(f"the matrix is not one number for each of {size[0]} sliders and {size[1]} columns")
        if len(effects.own) != size[0] or not all(0 <= column < size[1] for column in effects.own):
            raise ValueError(f"what the sliders are for must be columns from 0 to {size[1] - 1}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"These are not effects as Slider Report puts them out, or as its JSON file has them: {error}."
        ) from error
    return effects


def write_report(path: Path, effects: Effects, cosines: Tensor, facts: Mapping[str, Any]) -> None:
    """Write PATH.json and PATH.csv, both or neither.

    facts: what else the JSON says about the run, as plain values.
    Raises OSError that names them if they cannot be written.
    """
    texts = {".csv": as_csv(effects, cosines), ".json": as_json(effects, cosines=cosines.tolist(), **facts)}
    write_together(path, texts)


def _lines(names: Sequence[str], heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [["", *heads], *([name, *row] for name, row in zip(names, rows))]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in table]


def _pm(mean: float, error: float) -> str:
    return f"{mean:+.2f} ± {error:.2f}"
