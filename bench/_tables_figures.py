"""What is read of edited images: how far they went towards the edit's texts, how far they left their originals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.scores import alignment, delta_clip_score, embedding_distance
from concept_sliders.evaluation.slider_scores import conceptual_range
from concept_sliders.pocket.measuring.probe import COLUMNS
from concept_sliders.pocket.world.portrait import STYLES
from torch import Tensor

READ = tuple(name for name in COLUMNS if name not in STYLES)
DELTA_CLIP, ABSOLUTE, RANGE, DISTANCE = "delta CLIP", "|delta CLIP|", "CLIP range", "distance"
OWN, OTHERS, KEPT = "own", "others", "kept"


@dataclass(frozen=True)
class Edited:
    """What an edit is for. less, more: its texts, "" where there are none. attribute: what the probe calls it, ""
    where it does not read it. kept: attributes that it was told to preserve."""

    less: str = ""
    more: str = ""
    attribute: str = ""
    kept: tuple[str, ...] = ()


def figures_of(
    less: Tensor, usual: Tensor, more: Tensor, edited: Edited, instruments: Instruments
) -> dict[str, float]:
    """Return the figures of n images edited to both ends, (n, H, W, 3) in 0..1 each; a mean over images and ends.

    delta CLIP: towards the text of each end, in points, and without signs. CLIP range: `conceptual_range`, in points.
    distance: to the originals, LPIPS or else the first encoder's. own: how far the attribute's mean moves from less
    to more. others: how far every other reading of an image moves from its original. kept: the same of what was to be
    preserved. What there is no instrument or text for is left out.
    """
    found = {**_towards(less, usual, more, edited, instruments), DISTANCE: _distance(less, usual, more, instruments)}
    if instruments.probe is None:
        return found
    low, middle, high = (instruments.probe(images) for images in (less, usual, more))
    moved = {name: (low[name] - middle[name]).abs() + (high[name] - middle[name]).abs() for name in READ}
    others = [name for name in READ if name not in (edited.attribute, *edited.kept)]
    found[OTHERS] = float(torch.stack([moved[name] for name in others]).mean() / 2)
    if edited.attribute:
        found[OWN] = float((high[edited.attribute] - low[edited.attribute]).mean())
    if edited.kept:
        found[KEPT] = float(torch.stack([moved[name] for name in edited.kept]).mean() / 2)
    return found


def _towards(less: Tensor, usual: Tensor, more: Tensor, edited: Edited, instruments: Instruments) -> dict[str, float]:
    if instruments.joint is None or not (edited.less and edited.more):
        return {}
    name, embed_texts = instruments.joint
    to_less, to_more = embed_texts([edited.less, edited.more])
    low, middle, high = (instruments.encoders[name](images) for images in (less, usual, more))
    deltas = torch.cat([delta_clip_score(low, middle, to_less), delta_clip_score(high, middle, to_more)])
    along = [100 * torch.stack([alignment(low, text), alignment(high, text)], dim=-1) for text in (to_more, to_less)]
    extent = float(conceptual_range(*along).mean())
    return {DELTA_CLIP: float(deltas.mean()), ABSOLUTE: float(deltas.abs().mean()), RANGE: extent}


def _distance(less: Tensor, usual: Tensor, more: Tensor, instruments: Instruments) -> float:
    if instruments.lpips is not None:
        return float(torch.cat([instruments.lpips(images, usual) for images in (less, more)]).mean())
    embed = next(iter(instruments.encoders.values()))
    middle = embed(usual)
    return float(torch.cat([embedding_distance(embed(images), middle) for images in (less, more)]).mean())
