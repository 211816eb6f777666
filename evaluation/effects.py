"""What calibrating looks at: a slider's effect and distortion along strength, from its measurements.

The effect is read on one axis, the first of these that there is something for:

1. the attribute that the slider is named after, or else moves most, by a probe of what the model draws;
2. the CLIP score with the text of more less that with the text of less, by a joint encoder;
3. the embedding along the mean way that images go from minus to plus, by the first vision encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import Response
from .measurements import SliderMeasurements, attribute_of, blind_encoders
from .scores import clip_score

NO_EFFECT = (
    "Calibrating takes a vision encoder or a probe to tell the effect; LPIPS tells distances alone. Connect a CLIP "
    "vision encoder to clip_vision."
)
BY_PROBE, BY_TEXTS, BY_DIRECTION = "probe", "texts", "direction"


@dataclass(frozen=True)
class Axis:
    """One number of every image: what it is, in words, by which means, and (n, S) of n series at S strengths."""

    name: str
    means: str
    values: Tensor


def response_of(of: SliderMeasurements) -> Response:
    """Return the effect and the distortion along strength, of the prompts and seeds that have all strengths.

    Effects are turned so that they rise with strength on the whole.
    Raises ValueError if no prompt and seed has all strengths, nothing that was measured tells an effect, or a vision
    encoder tells no image from another.
    """
    series = of.complete_series()  # (n, S)
    if not len(series):
        raise ValueError("Calibrating takes at least one prompt and seed that was sampled at all strengths.")
    if blind := blind_encoders(of.measured):
        raise ValueError(f"Calibrating: {' '.join(blind)}")
    zero = of.strengths.index(0.0)
    turned = [at for at in range(len(of.strengths)) if at != zero]
    strengths = tuple(of.strengths[at] for at in turned)
    axis = _axis(of, series, zero)
    effects = (axis.values - axis.values[:, [zero]])[:, turned].T  # (S - 1, n)
    backwards = float(_outwards(effects.mean(1), strengths)) < 0
    originals = axis.values[:, zero]
    return Response(
        strengths,
        -effects if backwards else effects,
        _distortions(of, series, zero, axis)[:, turned].T,
        f"{axis.name}, falling" if backwards and axis.means != BY_TEXTS else axis.name,
        backwards and axis.means == BY_TEXTS,
        float(originals.std()) if len(originals) > 1 else 0.0,
        _others(of, series, zero, turned, axis),
        _coherence(of, series, zero, turned),
    )


def _axis(of: SliderMeasurements, series: Tensor, zero: int) -> Axis:
    measured = of.measured
    if measured.readings:
        name = attribute_of(
            of.name, {each: _moved(of, series, zero, measured.readings[each]) for each in measured.readings}
        )
        return Axis(name, BY_PROBE, measured.readings[name][series].double())
    if of.instruments.joint is not None and of.texts.more:
        encoder = of.instruments.joint[0]
        images = measured.embeddings[encoder][series]  # (n, S, E)
        texts = map(of.embedded, (of.texts.more, of.texts.less))
        more, *less = (clip_score(images, text) for text in texts if text is not None)
        return Axis(f"CLIP score ({encoder})", BY_TEXTS, more - less[0] if less else more)
    if measured.embeddings:
        encoder, embeddings = next(iter(measured.embeddings.items()))
        images = embeddings[series].double()
        ways = F.normalize((images - images[:, [zero]]).mean(0), dim=-1)  # (S, E): where images go at each strength
        direction = F.normalize(_outwards(ways, of.strengths), dim=0)
        return Axis(f"direction ({encoder})", BY_DIRECTION, images @ direction)
    raise ValueError(NO_EFFECT)


def _distortions(of: SliderMeasurements, series: Tensor, zero: int, axis: Axis) -> Tensor:
    """(n, S) distances to the originals, as lengths: of a squared distance, LPIPS and 1 - cosine, the root."""
    measured = of.measured
    if measured.lpips is not None:
        return measured.lpips[series].double().clamp(min=0).sqrt()
    if measured.embeddings:
        images = F.normalize(next(iter(measured.embeddings.values()))[series].double(), dim=-1)
        return (images - images[:, [zero]]).norm(dim=-1)
    others = [values[series].double() for name, values in measured.readings.items() if name != axis.name]
    return torch.stack([(each - each[:, [zero]]).abs() for each in others]).mean(0)


def _others(
    of: SliderMeasurements, series: Tensor, zero: int, turned: Sequence[int], axis: Axis
) -> dict[str, tuple[float, ...]]:
    """Return how far the mean of every other reading is from that of the originals, at each strength."""
    found = {}
    for name, readings in of.measured.readings.items():
        if name != axis.name:
            means = readings[series].double().mean(0)
            found[name] = tuple((means - means[zero])[turned].tolist())
    return found


def _coherence(of: SliderMeasurements, series: Tensor, zero: int, turned: Sequence[int]) -> tuple[float, ...]:
    """Return how far the images change the same way, in [0, 1], at each strength.

    Of changes c_i in the embedding, the root of mean c_i . c_j, i not j, over mean |c_i|^2: the length of what is
    common to them, without what chance adds to the mean of n. One image changes like itself.
    """
    if not of.measured.embeddings:
        return ()
    images = next(iter(of.measured.embeddings.values()))[series].double()
    changes = (images - images[:, [zero]])[:, turned]  # (n, S - 1, E)
    n, squares = len(changes), changes.square().sum(-1).mean(0)
    if n == 1:
        return (1.0,) * len(turned)
    pairs = (n * changes.mean(0).square().sum(-1) - squares) / (n - 1)
    return tuple((pairs / squares.clamp(min=1e-24)).clamp(0, 1).sqrt().tolist())


def _moved(of: SliderMeasurements, series: Tensor, zero: int, values: Tensor) -> float:
    """Return how far a reading moves with strength, all strengths counting alike: those that break images are few."""
    means = values[series].double().mean(0)
    return abs(float(_outwards(means - means[zero], of.strengths)))


def _outwards(changes: Tensor, strengths: Sequence[float]) -> Tensor:
    """(S, ...) changes -> (...): the mean over strengths, of the minus side with the opposite sign."""
    signs = torch.tensor([(s > 0) - (s < 0) for s in strengths], dtype=changes.dtype)
    return torch.tensordot(signs, changes, dims=1) / len(strengths)
