"""The picture of cross-talk, drawn with Pillow: what each slider moves, beside how alike the weight changes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .crosstalk import Effects
from .crosstalk_tables import shown_columns
from .plots import BACKGROUND, COLOURS, INK

CELL, SMALL_CELL, MOST_LARGE = (84, 54), (30, 30), 12  # pixels; cells are small where there are more
MARGIN, TITLE, HEAD, FOOT, GAP, LINE = 16, 34, 40, 30, 28, 15  # pixels
FAINT = (150, 150, 156)
LESS, MORE = COLOURS[0], COLOURS[1]  # colours of -1 and of +1; 0 is white
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Matrix:
    """Numbers with names, as they are drawn.

    values: (rows, columns). full: the value whose colour is the strongest. errors: below the values, or None.
    framed: the column of each row that is framed. faint: (rows, columns), True where a number is written in grey.
    """

    title: str
    note: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Tensor
    full: float
    framed: Sequence[int]
    errors: Tensor | None = None
    faint: Tensor | None = None

    @property
    def cell(self) -> tuple[int, int]:
        """The width and height of a cell in pixels."""
        return CELL if max(self.values.shape) <= MOST_LARGE else SMALL_CELL

    @property
    def labels(self) -> list[str]:
        """The columns' names, or the rows' numbers where they are too narrow for names."""
        if self.cell == CELL:
            return list(self.columns)
        return [str(self.rows.index(name) + 1) if name in self.rows else name for name in self.columns]


def draw_crosstalk(effects: Effects, cosines: Tensor) -> Tensor:
    """Draw the effects and, beside them, the cosines of the weight changes (K, K): (1, height, width, 3) in 0..1."""
    shown = shown_columns(effects)
    values = effects.matrix[:, shown]
    per = "in parts of own effects" if effects.encoder else "by the probe"
    moved = Matrix(
        f"What each slider moves, from 0 to {effects.strength:.3g}",
        f"{per}; framed: what it is for; grey: no more than chance",
        effects.sliders,
        [effects.columns[j] for j in shown],
        values,
        max(float(values.abs().max()), 1e-9),
        [shown.index(column) for column in effects.own],
        effects.errors[:, shown],
        ~effects.beyond_chance[:, shown],
    )
    alike = Matrix(
        "Cosine of the weight changes",
        "0: nothing in common; it says little about effects",
        effects.sliders,
        effects.sliders,
        cosines,
        1.0,
        range(len(cosines)),
    )
    parts = [draw_matrix(moved), draw_matrix(alike)]
    sheet = Image.new("RGB", (sum(p.width for p in parts) + GAP, max(p.height for p in parts)), BACKGROUND)
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (parts[0].width + GAP, 0))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def draw_matrix(matrix: Matrix) -> Image.Image:
    """Draw a matrix with its title above, its rows' names on the left and its note below."""
    (width, height), (rows, columns) = matrix.cell, matrix.values.shape
    names = [f"{n + 1}  {name}" if matrix.cell == SMALL_CELL else name for n, name in enumerate(matrix.rows)]
    font, large = ImageFont.load_default(13), ImageFont.load_default(16)
    left = MARGIN + round(max(font.getlength(_cut(name, 200)) for name in names)) + 10
    least = round(max(large.getlength(matrix.title), font.getlength(matrix.note))) + 2 * MARGIN
    size = (max(left + columns * width + MARGIN, least), TITLE + HEAD + rows * height + FOOT)
    image = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 10), matrix.title, INK, large)
    pen.text((MARGIN, size[1] - 10), matrix.note, FAINT, font, anchor="ls")
    for column, label in enumerate(matrix.labels):
        middle = left + (column + 0.5) * width
        for above, line in enumerate(reversed(_two_lines(label, width - 6))):
            pen.text((middle, TITLE + HEAD - 6 - above * LINE), line, INK, font, anchor="ms")
    for row, name in enumerate(names):
        top = TITLE + HEAD + row * height
        pen.text((left - 10, top + height / 2), _cut(name, 200), INK, font, anchor="rm")
        for column in range(columns):
            _draw_cell(pen, matrix, row, column, (left + column * width, top))
        x = left + matrix.framed[row] * width
        pen.rectangle([x, top, x + width - 2, top + height - 2], outline=INK, width=2)
    return image


def _draw_cell(pen: ImageDraw.ImageDraw, matrix: Matrix, row: int, column: int, corner: tuple[int, int]) -> None:
    (x, y), (width, height) = corner, matrix.cell
    value = float(matrix.values[row, column])
    colour = _shade(value / matrix.full)
    pen.rectangle([x, y, x + width - 2, y + height - 2], colour)
    if matrix.cell == SMALL_CELL:
        return
    dark = sum(colour) < 420
    ink = BACKGROUND if dark else INK
    if matrix.faint is not None and bool(matrix.faint[row, column]):
        ink = FAINT
    middle = y + height / 2 - (7 if matrix.errors is not None else 1)
    pen.text((x + width / 2 - 1, middle), f"{value:+.2f}", ink, ImageFont.load_default(16), anchor="mm")
    if matrix.errors is not None:
        below = f"± {float(matrix.errors[row, column]):.2f}"
        pen.text((x + width / 2 - 1, middle + 17), below, ink, ImageFont.load_default(11), anchor="mm")


def _shade(part: float) -> Colour:
    """The colour of a value in [-1, 1]: white at 0."""
    end, far = MORE if part > 0 else LESS, min(abs(part), 1.0)
    red, green, blue = (round(255 + (channel - 255) * far) for channel in end)
    return red, green, blue


def _two_lines(text: str, width: float) -> list[str]:
    """The text on one line, or broken at the last space that leaves room for the first; each no wider than width."""
    words, font = text.replace("_", " ").split(" "), ImageFont.load_default(13)
    if len(words) == 1 or font.getlength(" ".join(words)) <= width:
        return [_cut(" ".join(words), width)]
    fitting = [at for at in range(1, len(words)) if font.getlength(" ".join(words[:at])) <= width]
    at = max(fitting, default=1)
    return [_cut(" ".join(part), width) for part in (words[:at], words[at:])]


def _cut(text: str, width: float) -> str:
    """The text, or as much of its beginning as is no wider, at 13 pixels."""
    font = ImageFont.load_default(13)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
