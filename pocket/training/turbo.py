"""Distils the guided UNet into four steps without guidance, as a LoRA: segment by segment of its own ODE.

The teacher, guided, walks from noise to an image in sixteen Euler steps, once for each of many captions, and what it
has at every fourth step is kept on disk. The student learns to go from each of these to the next in one step
(progressive distillation, arXiv 2202.00512, with guidance as in arXiv 2210.03142). The walk is what costs; kept, it
is learned from several times. The sampler is Euler over ComfyUI's `sgm_uniform` schedule of four steps, at CFG 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.autoencoder import CHANNELS, FACTOR
from ..models.loading import weights_of
from ..models.text import WordTokenizer, prompt_ids
from ..models.unet import TIMESTEPS, noise_levels
from ..world.captions import caption_of_any_length
from ..world.drawing import SIZE
from ..world.portrait import Portrait
from .precision import bfloat16
from .run import Plan, fit, written
from .unet import Student, build_student

PLAN = Plan(steps=3000, batch=32, rate=1e-3, warm_up=50, ema=0.996, weight_decay=0.0, save=100)
STEPS = 4  # of the student
TEACHER_STEPS = 4  # for each of the student's
WALKS, WALKS_IN_A_FILE = 4096, 64
SIDE = SIZE // FACTOR  # of latents
CFG = 3.0  # of the teacher
RANK = 12
KEYS = "diffusion_model."  # what a LoRA's keys begin with


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
    """A frozen UNet with low-rank changes that can be learned."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student.requires_grad_(False)
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
            weights |= {f"{KEYS}{name}.{factor}": value for factor, value in layer.state_dict().items()}
            weights[f"{KEYS}{name}.alpha"] = torch.tensor(float(RANK))
        return weights

    def begin_with(self, lora: dict[str, Tensor]) -> None:
        """Take over what `lora` gave; layers that it lacks begin anew."""
        for name, layer in self.layers:
            if f"{KEYS}{name}.alpha" in lora:
                layer.load_state_dict({factor: lora[f"{KEYS}{name}.{factor}"] for factor in layer.state_dict()})


def train_turbo(
    weights: Path,
    people: list[Portrait],
    folder: Path,
    seed: int,
    plan: Plan = PLAN,
    walks: int = WALKS,
    stored: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The LoRA's tensors. weights: the folder of the model that is distilled. people: whom its captions are of.

    stored: a LoRA to begin with.
    """
    torch.manual_seed(seed)
    text, model = weights_of(weights, "text"), weights_of(weights, "unet")
    student, teacher = (build_student(text, seed, model) for _ in range(2))
    kept = kept_walks(teacher, people, folder / "walks", seed, walks)
    trained = Distilled(student)
    if stored is not None:
        trained.begin_with(stored)
    average = fit(trained, _samples(kept), distillation_loss, plan, folder / "turbo.pt", seed=seed)
    trained.load_state_dict(average.state_dict())
    return trained.lora()


@dataclass(frozen=True)
class Walks:
    """The teacher's walks: latents at the student's five sigmas, the last 0, (N, 5, 8, 16, 16), and ids, (N, 40)."""

    latents: Tensor
    ids: Tensor


def kept_walks(teacher: Student, people: list[Portrait], folder: Path, seed: int, count: int) -> Walks:
    """`count` walks, in files written whole; those that are there already are read."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for begin in range(0, count, WALKS_IN_A_FILE):
        size = min(WALKS_IN_A_FILE, count - begin)
        path = folder / f"walks-{seed}-{begin}-{size}.pt"
        if not path.exists():
            made = walk_for(teacher, people, (seed, begin), size)
            written(path, partial(torch.save, made))
        parts.append(torch.load(path, weights_only=True))
    return Walks(torch.cat([latents for latents, _ in parts]).float(), torch.cat([ids for _, ids in parts]))


def walk_for(teacher: Student, people: list[Portrait], seed: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """(size, 5, 8, 16, 16) in half precision, and ids (size, 40), of captions drawn by `seed`."""
    rng = np.random.default_rng(seed)
    tokenizer = WordTokenizer()
    ids = prompt_ids(tokenizer, [caption_of_any_length(people[i], rng) for i in rng.integers(len(people), size=size)])
    empty = prompt_ids(tokenizer, [""] * size)
    noise = torch.from_numpy(rng.standard_normal((size, CHANNELS, SIDE, SIDE), np.float32))
    ends = boundaries()
    x = noise * sigma_at(ends[:1])
    passed = [x]
    for part in range(STEPS):
        first, last = (ends[part + i].expand(size) for i in (0, 1))
        end = torch.zeros(size) if part == STEPS - 1 else sigma_at(last)
        with torch.no_grad(), bfloat16():
            x = walked(teacher, x, first, last, end, ids, empty)
        passed.append(x)
    return torch.stack(passed, dim=1).half(), ids


def boundaries() -> Tensor:
    """(5,) timesteps, 999 first; the last stands for sigma 0."""
    return torch.linspace(TIMESTEPS - 1, 0, STEPS + 1)


def distillation_loss(trained: Distilled, here: Tensor, there: Tensor, part: Tensor, ids: Tensor) -> Tensor:
    """|v_student - v|^2 for the v whose one Euler step goes from `here` to `there`. part: (B,) of 0..3."""
    ends = boundaries().to(here.device)
    first, last = ends[part], ends[part + 1]
    sigma, target_sigma = sigma_at(first), torch.where(part == STEPS - 1, 0.0, sigma_at(last))
    slope = (there - here) / _wide(target_sigma - sigma)
    wanted = v_of(here, here - _wide(sigma) * slope, sigma)
    with bfloat16():
        predicted = trained.student(_unit(here, sigma), first, ids)
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


def _samples(walks: Walks):
    def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(walks.ids), size=size))
        part = torch.from_numpy(rng.permutation(size) % STEPS)
        return walks.latents[chosen, part], walks.latents[chosen, part + 1], part, walks.ids[chosen]

    return batch
