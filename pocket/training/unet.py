"""Trains the UNet on latents of drawings, by v-prediction (arXiv 2202.00512), prompted by fresh captions.

Every drawing is encoded once; its caption is another one at each visit. Timesteps are drawn evenly, as the
sampler walks through them, and one batch covers them all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..models.autoencoder import Autoencoder
from ..models.loading import build_clip
from ..models.text import WordTokenizer, prompt_ids
from ..models.unet import TIMESTEPS, build_unet, noise_levels
from ..world.captions import caption_of_any_length
from ..world.pool import Pool
from .group_norm import with_row_group_norm
from .initial import initialise
from .precision import bfloat16
from .run import Plan, channels_last, fit, written

PLAN = Plan(steps=2800, batch=48, rate=1.2e-3, warm_up=200, ema=0.999, save=250, muon=True)
EMPTY = 0.1  # share of empty captions, for classifier-free guidance
ENDS = ("out_layers.3", "proj_out", "out.2")  # layers that a residual branch, or the network, ends with
ENCODED_AT_A_TIME = 64


class Student(nn.Module):
    """The UNet, with the text encoder that prompts it and does not learn."""

    sigmas: Tensor  # (1000,)
    places: Tensor  # (1, 1, 16, 16), the weight of each place's error

    def __init__(self, unet: nn.Module, text: nn.Module, places: Tensor | None = None):
        super().__init__()
        self.unet = with_row_group_norm(unet)
        self.register_buffer("places", torch.ones(1, 1, 1, 1) if places is None else places, persistent=False)
        self.text = text.requires_grad_(False)
        self.register_buffer("sigmas", noise_levels(), persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """(B, 8, 16, 16) of unit variance, (B,), (B, 40) -> v, (B, 8, 16, 16)."""
        with torch.no_grad():
            words, _, pooled, _ = self.text(ids)
        return self.unet(noisy, timesteps.float(), context=words.float(), y=pooled.float()).float()


def build_student(text: dict[str, Tensor], seed: int, stored: dict[str, Tensor] | None = None) -> Student:
    """With weights to begin from: the UNet's `stored` ones, or drawn ones. text: those of the text encoder.

    Blocks that a smaller UNet's stored weights lack begin as drawn: they end in zeros, so they add nothing at first.
    """
    unet = build_unet().diffusion_model.float().requires_grad_(True)
    initialise(unet, torch.Generator().manual_seed(seed), ENDS)
    if stored is not None:
        _, unknown = unet.load_state_dict(stored, strict=False)
        if unknown:
            raise ValueError(f"the stored UNet has layers that this one lacks: {', '.join(unknown[:4])}")
    encoder = build_clip(dtype=torch.float32).cond_stage_model.clip_l.transformer
    encoder.load_state_dict(text)
    return Student(channels_last(unet), encoder)


def train_unet(student: Student, latents: np.ndarray, pool: Pool, folder: Path, seed: int, plan: Plan = PLAN):
    """The whole run; the average of the UNet's weights, inside a Student."""
    return fit(student, _samples(latents, pool), v_loss, plan, folder / "unet.pt", seed=seed)


def encoded(vae: Autoencoder, pool: Pool, path: Path) -> np.ndarray:
    """(N, 8, 16, 16) float16 latents of the pool, made once and kept at `path`."""
    if not path.exists():
        with torch.no_grad(), bfloat16():
            parts = [vae.encode(pictures).half().numpy() for pictures in pool.batches(ENCODED_AT_A_TIME)]
        written(path, lambda partial: _save(partial, np.concatenate(parts)))
    return np.load(path, mmap_mode="r")


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)


def _samples(latents: np.ndarray, pool: Pool):
    tokenizer = WordTokenizer()

    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = rng.integers(len(pool), size=size)
        texts = ["" if rng.random() < EMPTY else caption_of_any_length(pool.people[i], rng) for i in chosen]
        ids = prompt_ids(tokenizer, texts)
        even = (rng.permutation(size) + rng.random(size)) / size  # one in each of `size` equal parts of [0, 1)
        timesteps = torch.from_numpy((even * TIMESTEPS).astype(np.int64))
        return torch.from_numpy(latents[chosen].astype(np.float32)), timesteps, ids

    return batch


def v_loss(student: Student, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
    """Mean over places, of weight w each, of w |v(x_t, t, c) - (alpha noise - sigma x_0)|^2.

    x_t = alpha x_0 + sigma noise, alpha^2 + sigma^2 = 1.
    """
    level = student.sigmas[timesteps][:, None, None, None]
    alpha = (1 + level.square()).rsqrt()
    sigma = level * alpha
    noise = torch.randn_like(latents)
    noisy = (alpha * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
    with bfloat16():
        predicted = student(noisy, timesteps, ids)
    return (student.places * (predicted - (alpha * noise - sigma * latents)).square()).mean()
