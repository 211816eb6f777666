"""Trains the pocket model's text encoder on captions alone, before it meets pictures.

As CLIP's encoder does, it arrives knowing what words mean: from its pooled output, a linear head reads what
a caption says of each attribute, mean and uncertainty, against the portrait's own numbers. Minutes of this
save hours of learning the words through the noise of pictures.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .captions import caption
from .text import WIDTH, WordTokenizer, padded_ids
from .world import BINARY, CONTINUOUS, STYLES, random_portrait

BATCH = 128
STEPS = 900
LEARNING_RATE = 1e-3
log = logging.getLogger(__name__)


class Reader(nn.Module):
    """(B, 128) pooled prompts -> what they say: means and log variances, logits, style logits."""

    sizes = (len(CONTINUOUS), len(CONTINUOUS), len(BINARY), len(STYLES))

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.head = nn.Linear(WIDTH, sum(self.sizes))
        self.head.weight.data.copy_(torch.randn(self.head.weight.shape, generator=generator) * WIDTH**-0.5)
        self.head.bias.data.zero_()

    def loss(self, pooled: Tensor, numbers: Tensor) -> Tensor:
        """Negative log likelihood of the numbers (B, 13) as `Portrait.numbers` orders them."""
        mean, log_variance, binary, style = self.head(pooled).split(self.sizes, dim=1)
        values = numbers[:, : len(CONTINUOUS)]
        flags = numbers[:, len(CONTINUOUS) : -1]
        return (
            F.gaussian_nll_loss(mean, values, log_variance.clamp(-6, 2).exp())
            + F.binary_cross_entropy_with_logits(binary, flags)
            + F.cross_entropy(style, numbers[:, -1].long())
        )


def train_text(encoder: nn.Module, seed: int, path: Path) -> None:
    """Train the encoder (the `clip_l` of the pocket model) and write it to `path`."""
    reader = Reader(torch.Generator().manual_seed(seed))
    parameters = [p for p in (*encoder.parameters(), *reader.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    tokenizer, losses = WordTokenizer(), []
    for step in range(STEPS):
        rng = np.random.default_rng((seed, step))
        people = [random_portrait(rng) for _ in range(BATCH)]
        ids = torch.tensor([padded_ids(tokenizer, caption(person, rng)) for person in people])
        numbers = torch.from_numpy(np.stack([person.numbers() for person in people]))
        loss = reader.loss(encoder.transformer(ids)[2], numbers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            log.info("captions: step %d / %d  loss %.4f", step + 1, STEPS, np.mean(losses[-50:]))
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, str(partial))
    os.replace(partial, path)
