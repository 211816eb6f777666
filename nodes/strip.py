"""Draws a labelled strip: rows of pictures under the strengths that made them."""

from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..sliders.stack import Stack

BACKGROUND, TEXT, FAINT = (250, 250, 248), (40, 40, 46), (128, 128, 136)
GAP = 4


def strip_labels(sliders: Stack | None, labels: str, count: int) -> tuple[list[str], str]:
    """(one label per column, a title) for `count` pictures.

    From `labels` if there are any, else from the swept slider of the stack; one column a picture otherwise.
    Raises ValueError if the pictures do not fill whole rows.
    """
    title = ""
    columns = [label.strip() for label in labels.split(",")] if labels.strip() else []
    swept = next((p for p in sliders or () if len(p.strength) > 1), None)
    if swept is not None:
        info = swept.slider.info
        title = f"{info.less}  to  {info.more}" if info.less and info.more else swept.slider.name
        columns = columns or [f"{value:+g}" if value else "0" for value in _one_period(swept.strength)]
    columns = columns or [""] * count
    if count % len(columns):
        raise ValueError(
            f"The strip has {len(columns)} columns, but {count} pictures do not fill whole rows of that."
        )
    return columns, title


def draw_strip(images: Tensor, labels: list[str], title: str, cell: int) -> Tensor:
    """(N, H, W, 3) pictures in 0..1 -> (1, height, width, 3): rows of len(labels) pictures, `cell` pixels wide."""
    count, height, width = images.shape[:3]
    size = (cell, max(1, round(cell * height / width)))
    letters = max(12, cell // 9)
    font = ImageFont.load_default(letters)
    head = (ceil(letters * 1.7) if title else 0) + (ceil(letters * 1.5) if any(labels) else GAP)
    columns, rows = len(labels), count // len(labels)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, head + rows * (size[1] + GAP)), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((sheet.width / 2, letters * 0.9), title, TEXT, font, anchor="mm")
    for column, label in enumerate(labels):
        middle = GAP + column * (cell + GAP) + cell / 2
        pen.text((middle, head - letters * 0.8), label, FAINT, font, anchor="mm")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        place = (GAP + column * (cell + GAP), head + row * (size[1] + GAP))
        sheet.paste(_picture(image).resize(size, Image.Resampling.LANCZOS), place)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _one_period(values: tuple[float, ...]) -> tuple[float, ...]:
    """The strengths of one swept latent: the shortest run that the rows repeat."""
    for length in range(1, len(values) + 1):
        if len(values) % length == 0 and values == values[:length] * (len(values) // length):
            return values[:length]
    return values
