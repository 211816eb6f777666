"""Images drawn on one sheet: a strip under the strengths that made them, and the contact sheet of image pairs."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..sliders.stack import Stack
from ..sliders.units import RAW, controls_in
from ..training.pairs.image_sets import ImagePairs, ImageSet, cover

BACKGROUND, TEXT, FAINT = (250, 250, 248), (40, 40, 46), (128, 128, 136)
GAP = 4  # pixels between images
SHEET_IMAGE_WIDTH = 160  # pixels of one image in the contact sheet
SHEET_ROWS = 24  # of the contact sheet at most
MASKED_BRIGHTNESS = 0.3  # of what a mask leaves out, in the contact sheet


def strip_labels(sliders: Stack | None, labels: str, count: int, units: str = RAW) -> tuple[list[str], str]:
    """Work out the column labels and the title of a strip of `count` images.

    labels: texts separated by commas; empty takes the strengths of the swept slider of the stack, and without one
        the strip has one unlabelled column for each image.
    units: of the strengths in the labels.
    Raises ValueError if the images do not fill whole rows.
    """
    title = ""
    columns = [label.strip() for label in labels.split(",")] if labels.strip() else []
    swept = next((p for p in sliders or () if len(p.strength) > 1), None)
    if swept is not None:
        info = swept.slider.info
        title = f"{info.less}  to  {info.more}" if info.less and info.more else swept.slider.name
        values = controls_in(units, swept.slider, _one_period(swept.strength))
        digits = "+g" if units == RAW else "+.3g"
        columns = columns or [f"{value:{digits}}" if value else "0" for value in values]
    columns = columns or [""] * count
    if count % len(columns):
        raise ValueError(f"The strip has {len(columns)} columns, but {count} images do not fill whole rows of that.")
    return columns, title


def draw_strip(images: Tensor, labels: list[str], title: str, image_width: int) -> Tensor:
    """Draw images in rows of len(labels), with the labels above them and a title.

    images: (N, H, W, 3) in 0..1. image_width: of one image in the strip, in pixels.
    Returns (1, height, width, 3) in 0..1.
    """
    count, height, width = images.shape[:3]
    size = (image_width, max(1, round(image_width * height / width)))
    letters = max(12, image_width // 9)
    font = ImageFont.load_default(letters)
    head = (ceil(letters * 1.7) if title else 0) + (ceil(letters * 1.5) if any(labels) else GAP)
    columns, rows = len(labels), count // len(labels)
    sheet = Image.new("RGB", (columns * (image_width + GAP) + GAP, head + rows * (size[1] + GAP)), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        fitting = _font_that_fits(title, letters, sheet.width - 2 * GAP)
        pen.text((sheet.width / 2, letters * 0.9), title, TEXT, fitting, anchor="mm")
    for column, label in enumerate(labels):
        middle = GAP + column * (image_width + GAP) + image_width / 2
        pen.text((middle, head - letters * 0.8), label, FAINT, font, anchor="mm")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        corner = (GAP + column * (image_width + GAP), head + row * (size[1] + GAP))
        sheet.paste(_to_pil(image).resize(size, Image.Resampling.LANCZOS), corner)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _font_that_fits(text: str, size: float, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font at this size, or at the one at which the text takes no more than `width` pixels."""
    wide = ImageFont.load_default(size).getlength(text)
    return ImageFont.load_default(min(size, size * width / max(wide, 1)))


def contact_sheet(pairs: ImagePairs) -> Tensor:
    """Draw image pairs with a row for each set and a column for each strength, masked parts darkened.

    Returns (1, height, width, 3) in 0..1; of many sets only the first 24 are drawn, and the title says so.
    """
    strengths = pairs.strengths
    rows = pairs.sets[:SHEET_ROWS]
    tallest = max(height / width for height, width in (one.size for one in rows))
    box = (max(1, round(SHEET_IMAGE_WIDTH * min(tallest, 2.0))), SHEET_IMAGE_WIDTH)
    cells = [_cell(one, strength, box) for one in rows for strength in strengths]
    title = "" if len(rows) == len(pairs) else f"{len(rows)} of {len(pairs)}"
    labels = [f"{strength:+g}" if strength else "0" for strength in strengths]
    return draw_strip(torch.stack(cells), labels, title, SHEET_IMAGE_WIDTH)


def _cell(one: ImageSet, strength: float, box: tuple[int, int]) -> Tensor:
    """(height, width, 3): the set's whole image at a strength on the background; background alone where it has none.

    box: (height, width) of the cell, in pixels.
    """
    cell = (torch.tensor(BACKGROUND) / 255).expand(*box, 3).clone()
    if strength not in one.strengths:
        return cell
    image = one.images[one.strengths.index(strength)].float().cpu()
    if one.mask is not None:
        image = image * (MASKED_BRIGHTNESS + (1 - MASKED_BRIGHTNESS) * one.mask.cpu()[..., None])
    scale = min(box[0] / one.size[0], box[1] / one.size[1])
    height, width = (max(1, round(length * scale)) for length in one.size)
    top, left = (box[0] - height) // 2, (box[1] - width) // 2
    cell[top : top + height, left : left + width] = cover(image, (height, width), "bicubic")
    return cell


def _to_pil(image: Tensor) -> Image.Image:
    """(H, W, 3 or more) in 0..1 as an RGB image of PIL."""
    return Image.fromarray((image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _one_period(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return the strengths of one swept latent: the shortest run that the batch entries repeat."""
    for length in range(1, len(values) + 1):
        if len(values) % length == 0 and values == values[:length] * (len(values) // length):
            return values[:length]
    return values
