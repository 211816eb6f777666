"""Trains the joint text-image encoder on drawings and captions: CLIP's symmetric loss (arXiv 2103.00020, fig. 3).

It sees pictures and words and nothing else, no attribute's number. The UNet is prompted by the text encoder
that comes out of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.loading import build_clip
from ..models.text import WordTokenizer, prompt_ids
from ..models.vision import build_vision
from ..world.captions import caption
from ..world.pool import Pool
from .initial import differentiable, initialise
from .run import Plan, bfloat16, fit

PLAN = Plan(steps=1000, batch=128, rate=1e-3, warm_up=150, ema=0.998, betas=(0.9, 0.98), weight_decay=0.05, save=200)
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # of the cosines, learned


class JointEncoder(nn.Module):
    """Vision tower and text encoder with the scale of their cosines."""

    vision: Any  # ComfyUI's, untyped
    text: Any

    def __init__(self):
        super().__init__()
        self.vision = build_vision().model.float()
        self.text = build_clip(dtype=torch.float32).cond_stage_model.clip_l.transformer
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, pictures: Tensor, ids: Tensor) -> Tensor:
        """(B, 3, 128, 128) in [-1, 1] and (B, 40) -> (B, B) scaled cosines, a row a picture."""
        seen = F.normalize(self.vision(pixel_values=pictures)[2].float(), dim=1)
        read = F.normalize(self.text(ids)[2].float(), dim=1)
        return self.log_scale.exp().clamp(max=LARGEST_SCALE) * seen @ read.T


def build_joint(seed: int) -> JointEncoder:
    """With weights to begin from."""
    generator = torch.Generator().manual_seed(seed)
    joint = JointEncoder()
    initialise(joint, generator)
    embeddings = joint.vision.vision_model.embeddings
    embeddings.class_embedding.data.copy_(torch.randn(embeddings.class_embedding.shape, generator=generator) * 0.3)
    for part in (joint.vision.vision_model.encoder, joint.text.text_model.encoder):
        for layer in part.layers:  # residual branches begin small
            layer.self_attn.out_proj.weight.data.mul_(0.4)
            layer.mlp.fc2.weight.data.mul_(0.4)
    differentiable(joint).requires_grad_(True)
    return joint


def train_joint(pool: Pool, folder: Path, seed: int, plan: Plan = PLAN) -> JointEncoder:
    """The whole run; the average of its weights."""
    return fit(build_joint(seed), _pairs(pool), _loss, plan, folder / "joint.pt", seed=seed)


def _pairs(pool: Pool):
    tokenizer = WordTokenizer()

    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(len(pool), size=size)
        ids = prompt_ids(tokenizer, [caption(pool.people[i], rng) for i in chosen])
        return pool.pictures(chosen), ids

    return batch


def _loss(joint: JointEncoder, pictures: Tensor, ids: Tensor) -> Tensor:
    with bfloat16():
        cosines = joint(pictures, ids)
    same = torch.arange(len(cosines), device=cosines.device)
    return (F.cross_entropy(cosines, same) + F.cross_entropy(cosines.T, same)) / 2
