"""Draws a portrait of the pocket world: (64, 64, 3) uint8, the same picture for the same portrait.

Shapes are drawn on a larger canvas and averaged down, which smooths their edges. Each style is a
palette (what a colour becomes), an outline width and a last touch; the shapes are the same in all.
"""

import colorsys
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world.portrait import Portrait
from .world.shapes import arc, mix, oval, ramp, tilted
from .world.unnamed import Unnamed

SIZE = 64
CANVAS = 256
FRAME = (16, 24, 240, 248)  # the part of the canvas that the picture shows
STARS = ((34, 60), (62, 38), (48, 96), (96, 44), (150, 36), (182, 78), (222, 92), (176, 44), (30, 120))
INK = (34, 30, 40)
PAPER = (246, 240, 228)

SKY_TOP = ((10, 14, 48), (62, 44, 112), (128, 140, 205), (92, 160, 232), (60, 150, 250))
SKY_LOW = ((40, 42, 96), (206, 96, 92), (248, 196, 150), (190, 222, 248), (214, 240, 255))
HAIR = ((24, 20, 26), (92, 54, 34), (168, 108, 52), (228, 190, 112), (244, 241, 234))
SKIN = ((84, 52, 36), (138, 90, 62), (190, 136, 98), (232, 184, 148), (254, 224, 202))


def draw(portrait: Portrait, unnamed: Unnamed | None = None) -> np.ndarray:
    """(64, 64, 3) uint8. unnamed: what no caption names; the portrait's seed says it otherwise."""
    brush = Brush(portrait.style)
    unnamed = unnamed or Unnamed.of(portrait.seed)
    _draw_sky(brush, portrait)
    face = _measure(portrait, unnamed)
    _draw_back_hair(brush, portrait, face)
    _draw_body(brush, portrait, face, unnamed)
    _draw_head(brush, portrait, face)
    _draw_wrinkles(brush, portrait, face)
    _draw_eyes(brush, portrait, face)
    _draw_nose_and_mouth(brush, portrait, face)
    _draw_front_hair(brush, portrait, face)
    if portrait.glasses:
        _draw_glasses(brush, face)
    if portrait.hat:
        _draw_hat(brush, face, unnamed)
    return brush.finish()


@dataclass(frozen=True)
class Face:
    """Places of the features, in canvas units."""

    x: float
    y: float
    half_width: float
    half_height: float
    eyes: tuple[tuple[float, float], tuple[float, float]]
    mouth: tuple[float, float]
    mouth_tilt: float
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]

    @property
    def top(self) -> float:
        return self.y - self.half_height


class Brush:
    """A canvas that draws filled shapes and lines the way one style does."""

    def __init__(self, style: str):
        self.style = style
        self.image = Image.new("RGB", (CANVAS, CANVAS), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def tint(self, color, strength: float = 1.0):
        """A colour as this style paints it."""
        rgb = np.array(color, dtype=float)
        if self.style == "ink sketch":
            wash = rgb @ (0.30, 0.59, 0.11) / 255
            rgb = np.array(PAPER) * (0.30 + 0.70 * wash)
        elif self.style == "pastel":
            grey = rgb.mean()
            rgb = 0.7 * (grey + 0.9 * (rgb - grey)) + 0.3 * np.array((255, 246, 250))
        return tuple(int(round(v)) for v in rgb)

    def shape(self, points, color, ink_width: int = 6):
        fill = self.tint(color)
        self.pen.polygon(points, fill=fill)
        outline = {"flat colour": mix(fill, INK, 0.45), "ink sketch": INK, "pastel": None}[self.style]
        if outline:
            width = ink_width if self.style == "ink sketch" else 3
            self.pen.line([*points, points[0], points[1]], fill=outline, width=width, joint="curve")

    def oval(self, x, y, rx, ry, color, ink_width: int = 6):
        self.shape(oval(x, y, rx, ry), color, ink_width)

    def dot(self, x, y, rx, ry, color):
        """An oval without an outline."""
        self.pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=self.tint(color))

    def line(self, points, color, width):
        self.pen.line(points, fill=self.tint(color), width=max(1, round(width)), joint="curve")

    def finish(self) -> np.ndarray:
        image = self.image
        if self.style == "pastel":
            image = image.filter(ImageFilter.GaussianBlur(1.5))
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX, box=FRAME))


def _measure(p: Portrait, unnamed: Unnamed) -> Face:
    x, y = 128 + unnamed.x, 132 + unnamed.y
    half_width = 42 + 26 * p.face_width
    half_height = 54 + 18 * p.age
    eye_y = y + 14 - 24 * p.age
    apart = half_width * 0.46
    eyes = [(x - apart, eye_y), (x + apart, eye_y)]
    mouth, tilt = (x, y + 36), 0.0
    if p.spoiled:
        drop, side, signs = unnamed.drop, unnamed.side, unnamed.signs
        eyes = [(eyes[0][0], eye_y - signs[0] * drop), (eyes[1][0], eye_y + signs[0] * drop)]
        mouth, tilt = (x + signs[1] * side, y + 36), signs[0] * 0.55
    return Face(
        x,
        y,
        half_width,
        half_height,
        (eyes[0], eyes[1]),
        mouth,
        tilt,
        ramp(SKIN, p.skin_tone),
        ramp(HAIR, p.hair_shade),
    )


def _draw_sky(brush: Brush, p: Portrait):
    top, low = (np.array(brush.tint(ramp(c, p.sky)), float) for c in (SKY_TOP, SKY_LOW))
    blend = np.linspace(0, 1, CANVAS)[:, None]
    rows = top * (1 - blend) + low * blend  # (256, 3)
    brush.image.paste(Image.fromarray(np.repeat(rows[:, None], CANVAS, 1).round().astype(np.uint8)))
    glow = max(0.0, 1 - p.sky / 0.3)
    if glow:
        sky = ramp(SKY_TOP, p.sky)
        for sx, sy in STARS:
            brush.dot(sx, sy, 3.5, 3.5, mix(sky, (255, 250, 220), glow))
        brush.dot(210, 54, 19, 19, mix(sky, (250, 244, 214), glow))
    if p.sky > 0.3:  # the sun climbs through the day
        height = 190 - 194 * (p.sky - 0.3)
        brush.dot(210, height, 20, 20, ramp(((255, 120, 70), (255, 190, 90), (255, 240, 150)), p.sky))


def _draw_back_hair(brush: Brush, p: Portrait, f: Face):
    if p.hair_length < 0.12:
        return
    reach = f.y - 24 + 142 * p.hair_length
    flare = f.half_width + 10 + 16 * p.hair_length
    crown = [(f.x + flare * cos(a), f.y - 14 - 64 * sin(a)) for a in np.linspace(pi, 0, 25)]
    ends = [
        (f.x + flare * 1.04, reach - 12),
        (f.x + flare * 0.8, reach),
        (f.x - flare * 0.8, reach),
        (f.x - flare * 1.04, reach - 12),
    ]
    brush.shape(crown + ends, f.hair)


def _draw_body(brush: Brush, p: Portrait, f: Face, unnamed: Unnamed):
    shoulders = 78 if p.woman else 100
    shirt = tuple(int(255 * v) for v in colorsys.hsv_to_rgb(unnamed.shirt, 0.5, 0.72))
    neck = 19 if p.woman else 27
    shade = mix(f.skin, (90, 40, 40), 0.16)
    brush.shape([(f.x - neck, f.y + 40), (f.x + neck, f.y + 40), (f.x + neck, 226), (f.x - neck, 226)], shade)
    arc = [(f.x + shoulders * cos(a), 262 - 46 * sin(a)) for a in np.linspace(pi, 0, 21)]
    brush.shape([*arc, (f.x + shoulders, 280), (f.x - shoulders, 280)], shirt)
    brush.shape([(f.x - neck, 218), (f.x + neck, 218), (f.x, 240)], shade)


def _draw_head(brush: Brush, p: Portrait, f: Face):
    for side in (-1, 1):
        brush.oval(f.x + side * f.half_width, f.y + 6, 9, 14, f.skin)
    jaw = 0.10 if p.woman else -0.06  # a man's jaw is squarer
    outline = []
    for a in np.linspace(0, 2 * pi, 49)[:-1]:
        squeeze = 1 - jaw * max(0.0, sin(a)) ** 2
        outline.append((f.x + f.half_width * squeeze * cos(a), f.y + f.half_height * sin(a)))
    brush.shape(outline, f.skin)
    blush = max(0.0, 1 - p.age / 0.4)  # children's cheeks
    if blush:
        color = mix(f.skin, (236, 84, 96), 0.5 * blush)
        for side in (-1, 1):
            brush.dot(f.x + side * f.half_width * 0.6, f.y + 28, 11, 8, color)


def _draw_wrinkles(brush: Brush, p: Portrait, f: Face):
    depth = max(0.0, (p.age - 0.3) / 0.7)
    if not depth:
        return
    color = mix(f.skin, (58, 26, 30), 0.75 * depth)
    width = 2 + 4 * depth
    w = f.half_width
    for row in range(3):
        y = f.y - 24 - 9 * row
        brush.line(arc(f.x, y, w * (0.52 - 0.07 * row), -3), color, width)
    for side in (-1, 1):
        cheek = [
            (f.x + side * w * 0.30, f.y + 18),
            (f.x + side * w * 0.52, f.y + 30),
            (f.x + side * w * 0.55, f.y + 47),
        ]
        brush.line(cheek, color, width)
        eye_y = f.y + 14 - 24 * p.age
        brush.line(arc(f.x + side * w * 0.46, eye_y + 20, 11, 4), color, width * 0.8)


def _draw_eyes(brush: Brush, p: Portrait, f: Face):
    radius = 6 + 11 * p.eye_size
    brow = mix(f.hair, INK, 0.35)
    for side, (x, y) in zip((-1, 1), f.eyes):
        brush.oval(x, y, radius * 1.25, radius, (252, 252, 250), ink_width=3)
        brush.dot(x, y, radius * 0.72, radius * 0.72, (70, 92, 104))
        brush.dot(x, y, radius * 0.42, radius * 0.42, (16, 14, 20))
        brush.dot(x - radius * 0.25, y - radius * 0.3, radius * 0.2, radius * 0.2, (255, 255, 255))
        if p.woman:
            lid = arc(x, y - radius * 0.55, radius * 1.35, -radius * 0.5)
            brush.line(lid, INK, 6)
            corner = x + side * radius * 1.25
            brush.line([(corner, y - radius * 0.5), (corner + side * 9, y - radius * 0.5 - 7)], INK, 5)
        frown = 14 * (0.5 - p.smile)  # brows go down to the nose in a frown, up in a laugh
        arch = [(px, py - side * frown * (px - x) / 15) for px, py in arc(x, y - radius - 9, 15, -4)]
        brush.line(arch, brow, 5 if p.woman else 10)


def _draw_nose_and_mouth(brush: Brush, p: Portrait, f: Face):
    shade = mix(f.skin, (80, 30, 30), 0.45)
    length = 8 + 12 * p.age
    tip = f.y + 20
    brush.line([(f.x - 2, tip - length), (f.x - 7, tip), (f.x + 5, tip + 1)], shade, 5)
    _draw_mouth(brush, p, f)


def _draw_mouth(brush: Brush, p: Portrait, f: Face):
    x, y = f.mouth
    half, bend = 19 + 9 * p.smile, 44 * (p.smile - 0.45)
    lip = (196, 48, 62) if p.woman else mix(f.skin, (96, 30, 32), 0.6)
    if brush.style == "ink sketch":
        lip = INK  # a red as grey as the skin would vanish
    lower = tilted(arc(x, y - bend / 2, half, bend), x, y, f.mouth_tilt)
    gape = max(0.0, p.smile - 0.5) * 30
    if gape:  # a laugh shows teeth
        upper = tilted(arc(x, y - bend / 2, half, bend - gape * 1.4), x, y, f.mouth_tilt)
        brush.pen.polygon(lower + upper[::-1], fill=brush.tint((252, 250, 244)))
        brush.line(upper, lip, 4)
    brush.line(lower, lip, 9 if p.woman else 7)


def _draw_front_hair(brush: Brush, p: Portrait, f: Face):
    w, top = f.half_width + 4, f.top
    cap = [(f.x + w * cos(a), f.y - 16 - (f.half_height - 10) * sin(a)) for a in np.linspace(pi, 0, 25)]
    hairline = [
        (f.x + w * 0.86, top + 38),
        (f.x + w * 0.4, top + 24),
        (f.x - w * 0.25, top + 30),
        (f.x - w * 0.86, top + 42),
    ]
    brush.shape(cap + hairline, f.hair)


def _draw_glasses(brush: Brush, f: Face):
    (lx, ly), (rx, ry) = f.eyes
    frame = (30, 28, 44)
    lens = min(24.0, f.half_width * 0.40)
    for x, y in f.eyes:
        brush.line(oval(x, y, lens, 22) + oval(x, y, lens, 22)[:2], frame, 6)
    brush.line([(lx + lens, ly), (rx - lens, ry)], frame, 6)
    brush.line([(lx - lens, ly), (f.x - f.half_width - 3, ly - 3)], frame, 6)
    brush.line([(rx + lens, ry), (f.x + f.half_width + 3, ry - 3)], frame, 6)


def _draw_hat(brush: Brush, f: Face, unnamed: Unnamed):
    felt = tuple(int(255 * v) for v in colorsys.hsv_to_rgb(unnamed.hat, 0.62, 0.62))
    w, base = f.half_width, f.top + 27
    crown = [(f.x + w * 0.86 * cos(a), base - 48 * sin(a) ** 0.6) for a in np.linspace(pi, 0, 25)]
    brush.shape(crown, felt)
    brush.shape(
        [
            (f.x - w * 0.86, base - 14),
            (f.x + w * 0.86, base - 14),
            (f.x + w * 0.88, base),
            (f.x - w * 0.88, base),
        ],
        mix(felt, INK, 0.5),
    )
    brush.shape(oval(f.x, base + 2, w * 1.42, 9), felt)
