"""Plots of measurements, drawn with Pillow: the effect along strength, and against the distortion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .tables import SliderTable

SIZE = (720, 480)  # pixels of a plot
LEFT, RIGHT, BOTTOM = 84, 24, 60  # margins around the axes
LEGEND_TOP, LEGEND_LINE = 32, 18  # pixels: where the legend begins, and the height of a line of it
BACKGROUND, INK, GRID = (255, 255, 255), (40, 40, 46), (226, 226, 230)
COLOURS = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0)),
    *((86, 180, 233), (90, 90, 98), (122, 66, 40), (128, 128, 0), (72, 61, 139)),
)
BAND = 48  # opacity of a band of spread, of 255
TICKS = 5  # about so many on an axis


@dataclass(frozen=True)
class Curve:
    """A named line through points. spread: half the height of a band around y, if any. labels: beside the points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    labels: Sequence[str] = ()


def plots(tables: Sequence[SliderTable]) -> Tensor:
    """Draw the effect along strength with its spread over the images, and the effect against the distortion.

    A curve for each slider. Returns (2, 480, 720, 3) in 0..1.
    """
    along, against = [], []
    for table in tables:
        strengths = [row.strength for row in table.rows]
        effect, spread = zip(*table.effects)
        along.append(Curve(table.name, strengths, effect, spread))
        distortion = [mean for mean, _ in table.distortions]
        against.append(Curve(table.name, distortion, effect, labels=[f"{s:+g}" if s else "0" for s in strengths]))
    effects, distortions = {table.effect for table in tables}, {table.distortion for table in tables}
    effect_label = effects.pop() if len(effects) == 1 else "effect, of each slider its own"
    distortion_label = distortions.pop() if len(distortions) == 1 else "distortion"
    return torch.stack(
        [
            draw_plot(along, "Effect along strength, with its spread", "strength", effect_label),
            draw_plot(against, "Effect against distortion", distortion_label, effect_label),
        ]
    )


def draw_plot(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> Tensor:
    """Draw curves in one pair of axes: (480, 720, 3) in 0..1."""
    image = Image.new("RGB", SIZE, BACKGROUND)
    top = _draw_legend(image, [curve.name for curve in curves])
    lows = [y - s for c in curves for y, s in zip(c.y, c.spread or [0.0] * len(c.y))]
    highs = [y + s for c in curves for y, s in zip(c.y, c.spread or [0.0] * len(c.y))]
    across = Axis.over([x for c in curves for x in c.x], LEFT, SIZE[0] - RIGHT)
    up = Axis.over([*lows, *highs], SIZE[1] - BOTTOM, top)
    _draw_axes(image, across, up, title, x_label, y_label)
    for number, curve in enumerate(curves):
        _draw_curve(image, curve, COLOURS[number % len(COLOURS)], across, up)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


@dataclass(frozen=True)
class Axis:
    """A linear map from values in [low, high] to pixels from `start` to `end`, with ticks at round values."""

    low: float
    high: float
    start: int
    end: int
    step: float

    @staticmethod
    def over(values: Sequence[float], start: int, end: int) -> Axis:
        """Make the axis that holds all values, from a round one to a round one."""
        low, high = min(values), max(values)
        if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # one value alone
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / TICKS
        magnitude = 10.0 ** floor(log10(rough))
        step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
        return Axis(floor(low / step) * step, ceil(high / step) * step, start, end, step)

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]


def _draw_axes(image: Image.Image, across: Axis, up: Axis, title: str, x_label: str, y_label: str) -> None:
    pen, small, large = ImageDraw.Draw(image), ImageFont.load_default(13), ImageFont.load_default(16)
    for value in across.ticks:
        pen.line([(across(value), up.start), (across(value), up.end)], GRID)
        pen.text((across(value), up.start + 6), f"{value + 0.0:.4g}", INK, small, anchor="ma")
    for value in up.ticks:
        pen.line([(across.start, up(value)), (across.end, up(value))], GRID)
        pen.text((across.start - 8, up(value)), f"{value + 0.0:.4g}", INK, small, anchor="rm")
    pen.line([(across.start, up.end), (across.start, up.start), (across.end, up.start)], INK)
    pen.text((SIZE[0] / 2, 8), title, INK, large, anchor="ma")
    pen.text(((across.start + across.end) / 2, SIZE[1] - 12), x_label, INK, small, anchor="ms")
    upright = Image.new("L", (up.start - up.end, 20))
    ImageDraw.Draw(upright).text((upright.width / 2, 10), y_label, 255, small, anchor="mm")
    upright = upright.rotate(90, expand=True)
    image.paste(INK, (4, up.end), upright)


def _draw_curve(image: Image.Image, curve: Curve, colour: tuple[int, int, int], across: Axis, up: Axis) -> None:
    points = [(across(x), up(y)) for x, y in zip(curve.x, curve.y)]
    if curve.spread:
        above = [(across(x), up(y + s)) for x, y, s in zip(curve.x, curve.y, curve.spread)]
        below = [(across(x), up(y - s)) for x, y, s in zip(curve.x, curve.y, curve.spread)]
        band = Image.new("L", image.size)
        ImageDraw.Draw(band).polygon([*above, *reversed(below)], BAND)
        image.paste(colour, (0, 0), band)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.line(points, colour, 2)
    for at, (x, y) in enumerate(points):
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], colour)
        if curve.labels:
            pen.text((x + 6, y - 6), curve.labels[at], colour, font, anchor="ls")


def _draw_legend(image: Image.Image, names: Sequence[str]) -> int:
    """Draw the curves' colours and names, in as many lines as they take; returns where the axes may begin."""
    pen, font, x, y = ImageDraw.Draw(image), ImageFont.load_default(13), float(LEFT), LEGEND_TOP
    for number, name in enumerate(names):
        width = 15 + font.getlength(name) + 18
        if x > LEFT and x + width > SIZE[0]:
            x, y = float(LEFT), y + LEGEND_LINE
        pen.rectangle([x, y + 4, x + 10, y + 14], COLOURS[number % len(COLOURS)])
        pen.text((x + 15, y + 9), name, INK, font, anchor="lm")
        x += width
    return y + LEGEND_LINE + 6
