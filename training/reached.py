"""What a slider has reached, measured on samples that it was not trained on.

For a sample at strength s, +1 or -1, let d be the frozen model's prediction, d* that with the slider at s, and
d + asked what that was to be. Then d* - d = part asked + rest, with rest at right angles to asked:

    part = < d* - d, asked > / < asked, asked >          beside = | rest | / | asked |

The products are sums over all samples at one strength, where their masks let them count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..comfy_host.predictor import ActingLayers, Predictor
    from .samples import Sample

STRENGTHS = (1.0, -1.0)


class _Sums:
    """< asked, asked >, < made, asked > and < made, made > at one strength."""

    def __init__(self) -> None:
        self.asked = self.along = self.made = 0.0

    def add(self, made: Tensor, asked: Tensor, mask: Tensor | None) -> None:
        weight = 1.0 if mask is None else mask.to(asked)
        self.asked += float((weight * asked * asked).sum())
        self.along += float((weight * made * asked).sum())
        self.made += float((weight * made * made).sum())

    @property
    def part(self) -> float:
        return self.along / self.asked

    @property
    def beside(self) -> float:
        return max(self.made / self.asked - self.part**2, 0.0) ** 0.5


def reached(predictor: Predictor, layers: ActingLayers, samples: list[Sample]) -> dict[str, float]:
    """Return "part +1", "beside +1", "part -1" and "beside -1", as far as there are samples that ask for a change."""
    sums = {strength: _Sums() for strength in STRENGTHS}
    for sample in samples:
        strengths = sample.strengths[None]  # (1, B, 1)
        (frozen,) = predictor.predict(sample.x, sample.sigma, [sample.prompt])
        (acting,) = predictor.predict(sample.x, sample.sigma, [sample.prompt], layers, strengths)
        asked = sample.target.float() - frozen.float()
        sums[float(sample.strengths[0, 0])].add(acting.float() - frozen.float(), asked, sample.mask)
    return {
        f"{name} {strength:+g}": value
        for strength, found in sums.items()
        if found.asked
        for name, value in (("part", found.part), ("beside", found.beside))
    }


def told_reached(found: dict[str, float]) -> str:
    """Put it into words; "" where nothing was measured."""
    said = [
        f"{found[f'part {at}']:.0%} of the asked change at {at}, {found[f'beside {at}']:.0%} beside it"
        for at in (f"{strength:+g}" for strength in STRENGTHS)
        if f"part {at}" in found
    ]
    return f"reached {'; '.join(said)}" if said else ""
