"""Trains the probe from nothing: `python3 dev.py module pocket.train_probe --folder FOLDER`.

Drawings have known numbers; the network learns to read them. Pictures are softened, shifted, tinted and
made noisy on the way, because it will read a diffusion model's pictures, which are a little of all that.
Deterministic by seed on the CPU; the same command goes on from its last checkpoint.
"""

import argparse
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .pool import drawn_pool
from .probe import WEIGHTS, Probe, Readings, split_columns
from .world import BINARY, CONTINUOUS, Portrait

WARM_UP = 100
BATCH = 64
NUMBERS_WEIGHT = 20.0  # of the squared errors, which are far smaller than the entropies
HELD_OUT_SEED = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: warm-up, then half a cosine from `learning_rate` down to zero."""

    steps: int
    learning_rate: float
    noise: float  # most standard deviation that is added to a picture, whose values span 2
    smile: float = 1.0  # weight of the smile among the numbers

    def rate(self, step: int) -> float:
        if step < WARM_UP:
            return self.learning_rate * (step + 1) / WARM_UP
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, self.steps - WARM_UP)))


# A mouth is a few thin pixels, the last thing to be learned: it gets a phase with clearer pictures.
PHASES = (Phase(3000, 4e-3, noise=0.12), Phase(2500, 2e-3, noise=0.05, smile=4.0))


class Lessons:
    """Batches of augmented drawings, the same for the same seed and step."""

    def __init__(self, people: list[Portrait], pictures: np.ndarray, seed: int):
        self.numbers = torch.from_numpy(np.stack([p.numbers() for p in people]))  # (N, 13)
        self.pictures, self.seed = pictures, seed

    def batch(self, step: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, 64, 64) in about [-1, 1] and (B, 13) targets."""
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.integers(len(self.pictures), size=BATCH)
        pictures = torch.from_numpy(self.pictures[chosen]).permute(0, 3, 1, 2)  # BHWC -> BCHW
        return augmented(pictures.float() / 127.5 - 1, noise, rng), self.numbers[chosen]


def augmented(pictures: torch.Tensor, noise: float, rng: np.random.Generator) -> torch.Tensor:
    """(B, C, H, W): blur, brightness, contrast and noise for each picture, one small shift for all."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    of_each = (len(pictures), 1, 1, 1)

    def amount(limit: float) -> torch.Tensor:
        return torch.rand(of_each, generator=generator) * limit

    soft = blurred(pictures, sigma=rng.uniform(0.4, 1.0))
    pictures = torch.lerp(pictures, soft, amount(1.0))
    height, width = pictures.shape[-2:]
    x, y = rng.integers(3, size=2).tolist()
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    pictures = padded[..., y : y + height, x : x + width]
    pictures = pictures * (0.96 + amount(0.08)) + (amount(0.08) - 0.04)
    return pictures + amount(noise) * torch.randn(pictures.shape, generator=generator)


def blurred(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian of five taps, by rows and by columns."""
    taps = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * sigma * sigma))
    kernel = (taps / taps.sum()).expand(pictures.shape[1], 1, 1, 5)
    padded = F.pad(pictures, (2, 2, 2, 2), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=pictures.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=pictures.shape[1])


def loss_of(values: torch.Tensor, targets: torch.Tensor, smile: float) -> torch.Tensor:
    """Squared error of the numbers plus the entropies of the rest: (B, 15), (B, 13) -> ()."""
    numbers, binary, style = split_columns(values)
    known, truth = targets[:, : len(CONTINUOUS)], targets[:, len(CONTINUOUS) : -1]
    weights = torch.ones(len(CONTINUOUS))
    weights[CONTINUOUS.index("smile")] = smile
    return (
        NUMBERS_WEIGHT * ((numbers - known).square() * weights).mean()
        + F.binary_cross_entropy_with_logits(binary, truth)
        + F.cross_entropy(style, targets[:, -1].long())
    )


def held_out_figures(readings: Readings, people: list[Portrait]) -> dict[str, float]:
    """R^2 of each continuous attribute, the share read right of each discrete one."""
    truth = torch.from_numpy(np.stack([p.numbers() for p in people]))  # (N, 13)
    figures = {}
    for column, name in enumerate(CONTINUOUS):
        known = truth[:, column]
        error = (readings[name] - known).square().mean()
        figures[name] = 1 - (error / known.var(correction=0)).item()
    for column, name in enumerate(BINARY, len(CONTINUOUS)):
        figures[name] = ((readings[name] > 0.5) == (truth[:, column] > 0.5)).float().mean().item()
    figures["style"] = (readings["style"].argmax(1) == truth[:, -1].long()).float().mean().item()
    return figures


def train(options: argparse.Namespace, phases: tuple[Phase, ...] = PHASES) -> Probe:
    """The whole run, from the last checkpoint if there is one."""
    torch.manual_seed(options.seed)
    probe = Probe().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=0.02)
    begin = _resume(options.folder / "probe.pt", probe, optimizer)
    lessons = Lessons(*drawn_pool(options.drawings, 1, options.pool), options.seed)
    start, losses = time.monotonic(), []
    plan = [(phase, step) for phase in phases for step in range(phase.steps)]
    for step, (phase, step_of_phase) in list(enumerate(plan))[begin:]:
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(step_of_phase)
        pictures, targets = lessons.batch(step, phase.noise)
        values = probe(pictures.contiguous(memory_format=torch.channels_last))
        loss = loss_of(values, targets, phase.smile)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            rate = BATCH * (step + 1 - begin) / (time.monotonic() - start)
            mean = np.mean(losses[-100:])
            log.info("step %d / %d  loss %.4f  %.0f images/s", step + 1, len(plan), mean, rate)
        if (step + 1) % options.save == 0 or step + 1 == len(plan):
            _checkpoint(options.folder / "probe.pt", probe, optimizer, step + 1)
    return probe.eval()


def save(probe: Probe, path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Store the probe in half precision, with what it reached, so stored, on drawings it has not seen."""
    weights = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in probe.state_dict().items()
    }
    probe.load_state_dict(weights)
    people, pictures = drawn_pool(options.held_out, HELD_OUT_SEED, options.pool)
    figures = held_out_figures(probe.read(torch.from_numpy(pictures).float() / 255), people)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    notes = {
        "held_out": json.dumps(rounded),
        "held_out_drawings": str(len(people)),
        "images": str(sum(phase.steps for phase in PHASES) * BATCH),
        "drawings": str(options.drawings),
        "seed": str(options.seed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(weights, str(partial), metadata=notes)
    os.replace(partial, path)
    return rounded


def _resume(path: Path, probe: Probe, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    probe.load_state_dict(state["probe"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _checkpoint(path: Path, probe: Probe, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"probe": probe.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints go here")
    parser.add_argument("--pool", type=Path, help="drawings are kept here (default: FOLDER/pool)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the probe is stored")
    parser.add_argument("--drawings", type=int, default=81920)
    parser.add_argument("--held-out", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=int, default=250, help="steps between checkpoints")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.pool = options.pool or options.folder / "pool"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    for name, value in save(train(options), options.weights, options).items():
        log.info("%-12s %.4f", name, value)


if __name__ == "__main__":
    main()
