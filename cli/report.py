"""The demo's strip, table and numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..pocket.measuring.effect import Effect

CELL, GAP, HEAD = 144, 4, 46
PAPER, TEXT, FAINT = (250, 250, 248), (40, 40, 46), (120, 120, 128)


def write(
    folder: Path, images: torch.Tensor, effects: dict[str, Effect], same: float, people: int, seconds: float
) -> None:
    """Write strip.png, report.md and report.json.

    images: (rows, strengths, H, W, 3) in [0, 1]. same: the share of unchanged people.
    """
    strip(images, effects["preserving"]).save(folder / "strip.png")
    text = ["# The demo's age slider", "", "![strip](strip.png)", "", summary(effects, same), "", table(effects), ""]
    text.append(f"{people} people that training has not seen; {seconds:.0f} s in all.")
    (folder / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    numbers = {name: {**asdict(e), "means": e.means.tolist()} for name, e in effects.items()}
    (folder / "report.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def summary(effects: dict[str, Effect], same: float) -> str:
    """Return the figures of the slider, one a line, each with its aim. same: the share of unchanged people."""
    slider = effects["preserving"]
    lines = [
        f"age along the strengths: {' '.join(f'{v:.2f}' for v in _column(slider, 'age'))}",
        f"Spearman of the means: {slider.spearman:.3f} (aim: at least 0.95)",
        f"span: {slider.span:.2f}, {slider.span / slider.reach:.0%} of the {slider.reach:.2f} between opposing "
        "prompts (aim: at least 75 %)",
        f"movement of the others, on average: {slider.mean_movement:.1%} of their range (aim: at most 6 %), of each "
        f"image {slider.mean_movement_of_each:.1%} (aim: at most 10 %)",
        f"of what comes with age in the world drawn, glasses {slider.movements['glasses']:.1%} (aim: under 15 %), "
        f"hair shade {slider.movements['hair_shade']:.1%}",
        f"woman or man, hat and style unchanged: {same:.0%} of all images (aim: at least 95 %)",
    ]
    if free := effects.get("free"):
        lines.append(
            f"without preserved phrases: glasses {free.movements['glasses']:.1%}, others {free.mean_movement:.1%}, "
            f"age span {free.span:.2f} (aim: glasses at most half as much when preserved)"
        )
    return "\n".join(f"- {line}" for line in lines)


def table(effects: dict[str, Effect]) -> str:
    """Return a table in Markdown: the mean reading of every attribute along the strengths, and how far it moved."""
    slider, free = effects["preserving"], effects.get("free")
    head = ["attribute", *(f"{s:+g}" if s else "0" for s in slider.strengths), "moved"]
    rows = []
    for index, name in enumerate(slider.attributes):
        moved = slider.means[-1, index] - slider.means[0, index]
        row = [name.replace("_", " "), *(f"{v:.2f}" for v in slider.means[:, index]), f"{moved:+.2f}"]
        rows.append(row + ([f"{free.means[-1, index] - free.means[0, index]:+.2f}"] if free else []))
    head += ["moved, nothing preserved"] if free else []
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def strip(images: torch.Tensor, found: Effect) -> Image.Image:
    """Draw people in rows, strengths in columns, under each column the age that the probe reads there."""
    rows, columns = images.shape[:2]
    size = (columns * (CELL + GAP) + GAP, HEAD + rows * (CELL + GAP) + HEAD)
    sheet = Image.new("RGB", size, PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(20), ImageFont.load_default(16)
    for column, strength in enumerate(found.strengths):
        middle = GAP + column * (CELL + GAP) + CELL / 2
        pen.text((middle, HEAD / 2), f"{strength:+g}" if strength else "0", TEXT, font, anchor="mm")
        age = f"age {_column(found, 'age')[column]:.2f}"
        pen.text((middle, size[1] - HEAD / 2), age, FAINT, small, anchor="mm")
        for row in range(rows):
            image = Image.fromarray((images[row, column].numpy() * 255).round().astype(np.uint8))
            place = (GAP + column * (CELL + GAP), HEAD + row * (CELL + GAP))
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), place)
    return sheet


def _column(found: Effect, name: str) -> list[float]:
    return found.means[:, found.attributes.index(name)].tolist()
