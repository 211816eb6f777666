"""Distils the guided UNet into four steps without guidance, as a LoRA: segment by segment of its own ODE.

From a noised drawing at one of the student's four sigmas the teacher, guided, walks to the next in several Euler
steps; the student learns to land there in one (progressive distillation, arXiv 2202.00512, with guidance as in
arXiv 2210.03142). The sampler is Euler over ComfyUI's `sgm_uniform` schedule of four steps, at CFG 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.loading import weights_of
from ..models.text import WordTokenizer, prompt_ids
from ..models.unet import TIMESTEPS, noise_levels
from ..world.captions import caption
from ..world.pool import Pool
from .run import Plan, bfloat16, fit
from .unet import Student, build_student

PLAN = Plan(steps=3000, batch=32, rate=5e-4, warm_up=100, ema=0.998, weight_decay=0.0)
STEPS = 4  # of the student
TEACHER_STEPS = 4  # for each of the student's
CFG = 3.0  # of the teacher
RANK = 12


class LowRank(nn.Module):
    """Adds up(down(x)) to what a linear or convolutional layer gives; nothing at first."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        self.lora_down, self.lora_up = factors(layer, rank)
        nn.init.zeros_(next(self.lora_up.parameters()))
        layer.register_forward_hook(lambda _, inputs, output: output + self.lora_up(self.lora_down(inputs[0])))


def factors(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    """The way down to `rank`, with the layer's own window, and the way up."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    size: Any = layer.kernel_size
    stride: Any = layer.stride
    padding: Any = layer.padding
    down = nn.Conv2d(layer.in_channels, rank, size, stride, padding, bias=False)
    return down, nn.Conv2d(rank, layer.out_channels, 1, bias=False)


class Distilled(nn.Module):
    """A frozen UNet with low-rank changes that can be learned, and the frozen teacher beside it."""

    def __init__(self, student: Student, teacher: Student):
        super().__init__()
        self.student, self.teacher = student.requires_grad_(False), teacher.requires_grad_(False)
        layers = {
            name: LowRank(module, RANK)
            for name, module in student.unet.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        }
        self.changes = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in layers.items()})
        self.layers = list(layers.items())

    def lora(self) -> dict[str, Tensor]:
        """Keys as ComfyUI's LoRA loader reads them; alpha is the rank, so the scale is 1."""
        weights: dict[str, Tensor] = {}
        for name, layer in self.layers:
            key = f"diffusion_model.{name}"
            weights |= {f"{key}.{factor}": value for factor, value in layer.state_dict().items()}
            weights[f"{key}.alpha"] = torch.tensor(float(RANK))
        return weights


def train_turbo(weights: Path, latents: np.ndarray, pool: Pool, folder: Path, seed: int, plan: Plan = PLAN):
    """The LoRA's tensors. weights: the folder of the models that are distilled."""
    torch.manual_seed(seed)
    student, teacher = (build_student(weights_of(weights, "text"), seed) for _ in range(2))
    for each in (student, teacher):
        each.unet.load_state_dict(weights_of(weights, "unet"))
    trained = Distilled(student, teacher)
    average = fit(trained, _samples(latents, pool), distillation_loss, plan, folder / "turbo.pt", seed=seed)
    trained.load_state_dict(average.state_dict())
    return trained.lora()


def boundaries() -> Tensor:
    """(5,) timesteps, 999 first; the last stands for sigma 0."""
    return torch.linspace(TIMESTEPS - 1, 0, STEPS + 1)


def distillation_loss(trained: Distilled, latents: Tensor, part: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
    """|v_student - v| for the v whose one Euler step lands where the teacher's several do. part: (B,) of 0..3."""
    ends = boundaries().to(latents.device)
    first, last = ends[part], ends[part + 1]
    sigma, target_sigma = sigma_at(first), torch.where(part == STEPS - 1, 0.0, sigma_at(last))
    noisy = latents + _wide(sigma) * torch.randn_like(latents)
    with torch.no_grad(), bfloat16():
        landed = walked(trained.teacher, noisy, first, last, target_sigma, ids, empty)
    slope = (landed - noisy) / _wide(target_sigma - sigma)
    wanted = v_of(noisy, noisy - _wide(sigma) * slope, sigma)
    with bfloat16():
        predicted = trained.student(_unit(noisy, sigma), first, ids)
    return (predicted - wanted).square().mean()


def walked(
    teacher: Student, x: Tensor, first: Tensor, last: Tensor, end: Tensor, ids: Tensor, empty: Tensor
) -> Tensor:
    """Guided Euler steps from timestep `first` to `last`, whose sigma is `end`; all (B,)."""
    for step in range(TEACHER_STEPS):
        here, there = (torch.lerp(first, last, (step + i) / TEACHER_STEPS) for i in (0, 1))
        sigma, following = sigma_at(here), sigma_at(there) if step + 1 < TEACHER_STEPS else end
        inputs = _unit(x, sigma)
        v, plain = teacher(torch.cat([inputs] * 2), torch.cat([here] * 2), torch.cat([ids, empty])).chunk(2)
        guided = plain + CFG * (v - plain)
        clean = denoised(x, guided, sigma)
        x = x + _wide(following - sigma) * (x - clean) / _wide(sigma)
    return x


def sigma_at(timesteps: Tensor) -> Tensor:
    """(B,) sigmas between the schedule's, as ComfyUI interpolates them: evenly in their logarithm."""
    logs = noise_levels().log().to(timesteps.device)
    low = timesteps.floor().long().clamp(0, TIMESTEPS - 1)
    high = timesteps.ceil().long().clamp(0, TIMESTEPS - 1)
    return torch.lerp(logs[low], logs[high], timesteps - timesteps.floor()).exp()


def denoised(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that a prediction v at x = x_0 + sigma noise stands for."""
    s = _wide(sigma)
    return x / (1 + s.square()) - v * s / (1 + s.square()).sqrt()


def v_of(x: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The other way round."""
    s = _wide(sigma)
    return (x / (1 + s.square()) - clean) * (1 + s.square()).sqrt() / s


def _unit(x: Tensor, sigma: Tensor) -> Tensor:
    scaled = x * (1 + _wide(sigma).square()).rsqrt()
    return scaled.contiguous(memory_format=torch.channels_last)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _samples(latents: np.ndarray, pool: Pool):
    tokenizer = WordTokenizer()

    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = rng.integers(len(pool), size=size)
        ids = prompt_ids(tokenizer, [caption(pool.people[i], rng) for i in chosen])
        empty = prompt_ids(tokenizer, [""] * size)
        part = torch.from_numpy(rng.permutation(size) % STEPS)
        return torch.from_numpy(latents[chosen].astype(np.float32)), part, ids, empty

    return batch
