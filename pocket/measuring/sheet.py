"""Contact sheets: rows of pictures with a label, as one image."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (40, 40, 48)
GAP = 4


def contact_sheet(rows: list[tuple[str, torch.Tensor]], scale: int = 2) -> Image.Image:
    """Each row: a label above (N, H, W, 3) pictures in [0, 1], enlarged without smoothing."""
    return stacked([_labelled(label, _strip(pictures, scale), 14) for label, pictures in rows])


def captioned(pictures: torch.Tensor, captions: Sequence[str]) -> Image.Image:
    """(N, H, W, 3) pictures in [0, 1] side by side, each below a caption of its own."""
    strips = [_strip(picture[None], 1) for picture in pictures]
    cells = [_labelled(caption, strip, 12) for caption, strip in zip(captions, strips, strict=True)]
    line = Image.new("RGB", (sum(cell.width + GAP for cell in cells) - GAP, cells[0].height), PAPER)
    for index, cell in enumerate(cells):
        line.paste(cell, (index * (cell.width + GAP), 0))
    return line


def overview(rows: list[tuple[str, torch.Tensor, torch.Tensor]]) -> Image.Image:
    """Each row: a label, then the pictures of the low end and, after a gap, those of the high end."""
    lines = []
    for label, low, high in rows:
        ends = [_strip(pictures, 1) for pictures in (low, high)]
        line = Image.new("RGB", (sum(e.width for e in ends) + 6 * GAP, ends[0].height), PAPER)
        line.paste(ends[0], (0, 0))
        line.paste(ends[1], (ends[0].width + 6 * GAP, 0))
        lines.append(_labelled(label, line, 12))
    return stacked(lines)


def _strip(pictures: torch.Tensor, scale: int) -> Image.Image:
    """(N, H, W, 3) side by side, a gap between."""
    count, height, width, _ = pictures.shape
    strip = Image.new("RGB", (count * (width * scale + GAP) - GAP, height * scale), PAPER)
    for index, picture in enumerate((pictures.clamp(0, 1) * 255).round().byte().cpu().numpy()):
        image = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        strip.paste(image, (index * (width * scale + GAP), 0))
    return strip


def _labelled(label: str, picture: Image.Image, size: int) -> Image.Image:
    band = size + 2 * GAP
    image = Image.new("RGB", (picture.width, picture.height + band), PAPER)
    ImageDraw.Draw(image).text((0, GAP), label, fill=INK, font=ImageFont.load_default(size))
    image.paste(picture, (0, band))
    return image


def stacked(parts: list[Image.Image]) -> Image.Image:
    """Draw pictures one above the other."""
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width + 2 * GAP, sum(part.height + GAP for part in parts) + GAP), PAPER)
    y = GAP
    for part in parts:
        sheet.paste(part, (GAP, y))
        y += part.height + GAP
    return sheet
