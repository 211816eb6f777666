"""How strong a visual slider is made once it is trained: strengths -1 and +1 are to do what the images show.

ADDifT learns from what the frozen model misses in an image, which is less than what the images differ in; and when
its steps are over a slider makes a part of what it was asked for (see `reached`). So it is tried in sampling, and
made stronger until it moves the images by `ENOUGH` of the way, or until there is no gain:

    moved(k) = sum_n < z_n(+k) - z_n(-k), D_n >  /  sum_n < D_n, D_n >

z_n(s) is the final latent from an image with noise, with the slider at strength s, and D_n the difference of the
images that it is to make, see `visual_fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FACTORS = (1.0, 1.4, 2.0, 3.0)
ENOUGH = 0.5
WEAK = 0.15  # of the pocket model's sliders, one of 0.18 took hats on and off, one of 0.10 did nothing


@dataclass(frozen=True)
class Fit:
    """How many times stronger a slider is made, and how far it then moves images from -1 to +1, as a share."""

    factor: float
    moved: float


def fit_strength(moved: Callable[[float], float]) -> Fit:
    """Return the smallest of `FACTORS` that moves images by `ENOUGH`, or else the one that moves them furthest.

    moved: the share of the way by which the slider moves them at so many times its strength.
    """
    tried: dict[float, float] = {}
    for factor in FACTORS:
        tried[factor] = moved(factor)
        if tried[factor] >= ENOUGH:
            return Fit(factor, tried[factor])
    furthest = max(tried, key=tried.__getitem__)
    return Fit(furthest, tried[furthest])


def told_fit(fit: Fit) -> str:
    """Put it into words."""
    stronger = f", made {fit.factor:g} times stronger for it" if fit.factor != 1 else ""
    return f"from -1 to +1 it moves latents by {fit.moved:.0%} of what the images differ in{stronger}"


def warn_fit(fit: Fit) -> str:
    """Return a warning about a slider that is weak all the same; "" if it is not."""
    if fit.moved >= WEAK:
        return ""
    return (
        f"The slider is weak: from -1 to +1 it moves latents by {fit.moved:.0%} of what the images differ in, at "
        f"{fit.factor:g} times the strength that it was trained at. Train more steps, or on images that differ "
        "by more."
    )
