"""Names for directions: the words of a list that fit their two ends best, by a joint text and image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from ..sliders.slider import Slider
from ..sliders.stack import Stack

SAME = 0.9999  # cosine of two words' embeddings that an encoder does not tell apart


@dataclass(frozen=True)
class EndNames:
    """Words for the two ends of one direction, the best first."""

    less: tuple[str, ...]
    more: tuple[str, ...]


def names_of(changes: Tensor, texts: Tensor, words: Sequence[str], count: int = 3) -> list[EndNames]:
    """Rank words by how far each direction moves the image's embedding towards theirs.

    changes: (K, D), mean changes of the embedding from the lower to the upper end. texts: (W, D), the words' own.
    What all words have in common is taken out first: it says that they are words, not what they mean.
    """
    if len(words) != len(texts):
        raise ValueError(f"Each word needs its embedding; got {len(words)} words and {len(texts)} embeddings.")
    centred = F.normalize(F.normalize(texts, dim=-1) - F.normalize(texts, dim=-1).mean(0), dim=-1)
    fit = F.normalize(changes, dim=-1) @ centred.T  # (K, W)
    ranked = fit.argsort(dim=1, descending=True).tolist()
    return [
        EndNames(tuple(words[at] for at in row[: -count - 1 : -1]), tuple(words[at] for at in row[:count]))
        for row in ranked
    ]


def trained_and_done(directions: Tensor, changes: Tensor) -> Tensor:
    """Return what sliders were trained along, (K, D), and what a few images say they do, (K, D), in equal parts."""
    return F.normalize(directions, dim=-1) + F.normalize(changes, dim=-1)


def told_apart(texts: Tensor) -> list[int]:
    """Indices of the words, (W, D), that no other has the embedding of, as all those have that an encoder lacks."""
    unit = F.normalize(texts.double(), dim=-1)
    return [at for at, row in enumerate(unit @ unit.T) if int((row > SAME).sum()) == 1]


def with_names(stack: Stack, names: Sequence[EndNames]) -> Stack:
    """Label the ends of each slider by its best words, and add that of the upper one to its name."""
    named = []
    for each, ends in zip(stack, names, strict=True):
        slider, less, more = each.slider, ends.less[0], ends.more[0]
        info = replace(slider.info, less=less, more=more)
        named.append(replace(each, slider=Slider(f"{slider.name} {more}", slider.layers, info)))
    return Stack(tuple(named))
