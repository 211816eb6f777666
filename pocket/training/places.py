"""How much each place of the latents tells of what captions name.

Of a drawing's squared error most is background; a smile is four of 256 places. Each place's prediction has its
own best value, so the weights of places change no optimum, only what is learned first.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from ..models.autoencoder import Autoencoder
from ..world.drawing import draw
from ..world.portrait import CONTINUOUS, Portrait, portraits

PEOPLE = 48
EVEN = 0.5  # part of the weight that all places share


@torch.no_grad()
def place_weights(vae: Autoencoder, seed: int, people: int = PEOPLE) -> Tensor:
    """(1, 1, 16, 16), mean 1: latents' mean squared change from one end of an attribute to the other.

    Every continuous attribute counts the same, however large the place that it fills.
    """
    looked_at = portraits(people, seed=seed)
    shares = []
    for name in CONTINUOUS:
        low, high = (vae.encode(_drawn([p.with_(**{name: end}) for p in looked_at])) for end in (0.0, 1.0))
        change = reduce((high - low).square(), "b c h w -> 1 1 h w", "mean")
        shares.append(change / change.mean())
    return EVEN + (1 - EVEN) * torch.cat(shares).mean(0, keepdim=True)


def _drawn(people: list[Portrait]) -> Tensor:
    drawn = torch.from_numpy(np.stack([draw(p) for p in people])).float() / 127.5 - 1
    return rearrange(drawn, "b h w c -> b c h w")
