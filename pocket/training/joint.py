"""Trains the joint text-image encoder on drawings and captions: CLIP's symmetric loss (arXiv 2103.00020, fig. 3).

People are told apart by their skin, age and sky alone, and by that loss neither tower would ever look at eyes. So a
picture's caption is told from captions too that are wrong in one word of it (hard negatives, as in arXiv 2210.01936),
and each tower names the caption's words from its own embedding (as in arXiv 2411.03313, eq. 1), which needs no other
tower to have learned anything yet. It sees pictures and words and nothing else, no attribute's number. The UNet is
prompted by the text encoder that comes out of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measuring.prompts import DEGREES
from ..models.loading import build_clip
from ..models.text import WIDTH, WordTokenizer, prompt_ids
from ..models.vision import build_vision
from ..world.captions import caption, words_of
from ..world.pool import Pool
from ..world.portrait import CONTINUOUS, Portrait, portraits
from .initial import differentiable, initialise
from .precision import bfloat16
from .run import Plan, fit

PLAN = Plan(steps=2400, batch=64, rate=1e-3, warm_up=150, ema=0.998, betas=(0.9, 0.98), weight_decay=0.05, save=200)
WRONG = 3  # captions beside each right one, each wrong in one thing
CAPTIONS, COMMON = 4000, 12  # how many captions are looked through for what they name, and the fewest times of it
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # of the cosines, learned


class JointEncoder(nn.Module):
    """Vision tower and text encoder with the scale of their cosines."""

    vision: Any  # ComfyUI's, untyped
    text: Any

    def __init__(self, words: int):
        """words: how many words and pairs of words the towers name."""
        super().__init__()
        self.vision = build_vision().model.float()
        self.text = build_clip(dtype=torch.float32).cond_stage_model.clip_l.transformer
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.name_seen, self.name_read = (nn.Linear(WIDTH, words) for _ in range(2))

    def forward(self, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, 128, 128) in [-1, 1] and (N, 40), N >= B -> (B, N) scaled cosines, a row a picture, and words.

        The words are logits, (B, words): those seen in the pictures, and those read in the first B captions.
        """
        seen, read = self.vision(pixel_values=pictures)[2].float(), self.text(ids)[2].float()
        cosines = F.normalize(seen, dim=1) @ F.normalize(read, dim=1).T
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return scale * cosines, self.name_seen(seen), self.name_read(read[: len(seen)])


def build_joint(seed: int) -> JointEncoder:
    """With weights to begin from."""
    generator = torch.Generator().manual_seed(seed)
    joint = JointEncoder(len(common_words()))
    initialise(joint, generator)
    embeddings = joint.vision.vision_model.embeddings
    embeddings.class_embedding.data.copy_(torch.randn(embeddings.class_embedding.shape, generator=generator) * 0.3)
    for part in (joint.vision.vision_model.encoder, joint.text.text_model.encoder):
        for layer in part.layers:  # residual branches begin small
            layer.self_attn.out_proj.weight.data.mul_(0.4)
            layer.mlp.fc2.weight.data.mul_(0.4)
    differentiable(joint).requires_grad_(True)
    return joint


def train_joint(
    pool: Pool, folder: Path, seed: int, plan: Plan = PLAN, stored: tuple[dict, dict] | None = None
) -> JointEncoder:
    """The whole run; the average of its weights. stored: those of text and vision to begin with, or drawn ones."""
    joint = build_joint(seed)
    if stored is not None:
        joint.text.load_state_dict(stored[0])
        joint.vision.load_state_dict(stored[1])
        joint.log_scale.data.fill_(math.log(LARGEST_SCALE) / 2 + math.log(FIRST_SCALE) / 2)
    return fit(joint, _pairs(pool), _loss, plan, folder / "joint.pt", seed=seed)


def _pairs(pool: Pool):
    tokenizer, places = WordTokenizer(), {word: place for place, word in enumerate(common_words())}

    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = rng.integers(len(pool), size=size)
        texts = [right_and_wrong(pool.people[i], rng, WRONG) for i in chosen]
        ids = prompt_ids(tokenizer, [each[place] for place in range(1 + WRONG) for each in texts])
        return pool.pictures(chosen), ids, torch.stack([bag(each[0], places) for each in texts])

    return batch


def named_in(text: str) -> list[str]:
    """Its words, and the pairs of words that follow one another between two commas."""
    clauses = [words_of(clause) for clause in text.split(",")]
    return [name for words in clauses for name in (*words, *(" ".join(pair) for pair in pairwise(words)))]


def common_words() -> list[str]:
    """The words and pairs of words of captions, in a fixed order; rare pairs are left out."""
    rng = np.random.default_rng(0)
    found = Counter(name for p in portraits(CAPTIONS, seed=2**42) for name in named_in(caption(p, rng)))
    return sorted(name for name, times in found.items() if times >= COMMON)


def bag(text: str, places: Mapping[str, int]) -> Tensor:
    """(words,): each word and pair of words of a caption has the same share of 1."""
    named = torch.zeros(len(places))
    named[[places[name] for name in named_in(text) if name in places]] = 1.0
    return named / named.sum()


def right_and_wrong(person: Portrait, rng: np.random.Generator, count: int) -> list[str]:
    """A caption of a drawing, then `count` that are wrong in one degree that they name."""
    while True:
        seed = rng.integers(2**31)
        right = caption(person, np.random.default_rng(seed))
        moved = [_elsewhere(person, name, rng) for name in rng.permutation(CONTINUOUS)]
        wrong = [text for p in moved if (text := caption(p, np.random.default_rng(seed))) != right]
        if len(wrong) >= count:  # a caption that is the same does not name what was moved
            return [right, *wrong[:count]]


def _elsewhere(person: Portrait, name: str, rng: np.random.Generator) -> Portrait:
    """With one attribute moved into another fifth of its range."""
    moved = (getattr(person, name) + rng.integers(1, DEGREES) / DEGREES) % 1.0
    return person.with_(**{name: float(moved)})


def _loss(joint: JointEncoder, pictures: Tensor, ids: Tensor, bags: Tensor) -> Tensor:
    """ids: ((1 + WRONG) B, 40), the B right captions first. bags: (B, words), of the right captions."""
    with bfloat16():
        cosines, seen, read = joint(pictures, ids)
    return contrast(cosines) + F.cross_entropy(seen.float(), bags) + F.cross_entropy(read.float(), bags)


def contrast(cosines: Tensor) -> Tensor:
    """(B, (1 + K) B) scaled cosines, the right captions first: the mean of both ways' cross-entropy.

    Each picture chooses among the right captions of all and its own K wrong ones; each right caption among the
    pictures.
    """
    count = len(cosines)
    same = torch.arange(count, device=cosines.device)
    right, *wrong = cosines.split(count, dim=1)
    own = torch.stack([part.diagonal() for part in wrong], dim=1) if wrong else right[:, :0]
    return (F.cross_entropy(torch.cat([right, own], dim=1), same) + F.cross_entropy(right.T, same)) / 2
