"""Points and colours for drawing: curves as lists of points, colours as RGB triples of 0..255."""

from math import cos, pi, sin

import numpy as np


def oval(x, y, rx, ry, steps: int = 32):
    return [(x + rx * cos(a), y + ry * sin(a)) for a in np.linspace(0, 2 * pi, steps + 1)[:-1]]


def arc(x, y, half, bend, steps: int = 12):
    """A parabola from (x - half, y) to (x + half, y) that sags by `bend` in the middle."""
    return [(x + half * t, y + bend * (1 - t * t)) for t in np.linspace(-1, 1, steps)]


def tilted(points, x, y, angle):
    c, s = cos(angle), sin(angle)
    return [(x + c * (a - x) - s * (b - y), y + s * (a - x) + c * (b - y)) for a, b in points]


def mix(color, other, share: float):
    return tuple(round(a + (b - a) * share) for a, b in zip(color, other))


def ramp(colors, t: float):
    place = t * (len(colors) - 1)
    low = min(int(place), len(colors) - 2)
    return mix(colors[low], colors[low + 1], place - low)
