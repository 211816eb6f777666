"""One training run of a pocket model: batches, loss, AdamW or Muon, an average of the weights, and checkpoints."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models.eight_bits import in_half_precision, packed
from .muon import Muon

NARROW = 16  # channels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How long and how fast a model learns.

    steps: optimiser steps. batch: examples a step. rate: the highest learning rate, reached after `warm_up`
    steps and lowered along half a cosine to zero. ema: decay of the moving average of the weights, a step.
    betas, weight_decay: AdamW's. save: steps between checkpoints.
    """

    steps: int
    batch: int
    rate: float
    warm_up: int = 200
    ema: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    save: int = 500
    muon: bool = False

    def learning_rate(self, step: int) -> float:
        """At one step: linear warm-up, then half a cosine down to zero."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        part = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * 0.5 * (1 + math.cos(math.pi * part))


Batch = tuple[Tensor, ...]
M = TypeVar("M", bound=nn.Module)


def fit(
    model: M,
    batch: Callable[[np.random.Generator, int], Batch],
    loss: Callable[..., Tensor],
    plan: Plan,
    state_file: Path,
    *,
    seed: int,
    device: str = "cpu",
) -> M:
    """Train `model` and return the moving average of its weights, as a module of its own.

    batch: (generator, size) -> the tensors of one step. loss: (model, *tensors) -> a scalar. Both see the same
    random numbers at the same step of the same seed. Goes on from `state_file`, which is written whole.
    """
    average = copy.deepcopy(model)
    average.requires_grad_(False).to(device).eval()
    model.to(device).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(learned, plan)
    begin, seconds = _resumed(state_file, model, average, optimizers)
    start, losses = time.monotonic(), []
    for step in range(begin, plan.steps):
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = plan.learning_rate(step)
        examples = batch(np.random.default_rng((seed, step)), plan.batch)
        torch.manual_seed(seed * 1_000_003 + step)
        value = loss(model, *(t.to(device) for t in examples))
        value.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        follow(average, model, min(plan.ema, (step + 1) / (step + 10)))
        losses.append(value.item())
        if (step + 1) % 100 == 0:
            rate = plan.batch * (step + 1 - begin) / (time.monotonic() - start)
            log.info(
                "%s: step %d / %d  loss %.4f  %.1f a second",
                state_file.stem, step + 1, plan.steps, np.mean(losses[-100:]), rate,
            )  # fmt: skip
        if (step + 1) % plan.save == 0 or step + 1 == plan.steps:
            passed = seconds + time.monotonic() - start
            _store(state_file, model, average, optimizers, {
                "step": step + 1, "examples": (step + 1) * plan.batch, "seconds": passed
            })  # fmt: skip
    return average


def _optimizers(learned: list[nn.Parameter], plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for matrices, where it is asked for, and AdamW for the rest.

    A first or last layer, whose smaller side is as narrow as what goes in or out, is AdamW's in any case.
    """
    inner = [p for p in learned if plan.muon and p.ndim > 1 and min(len(p), p.shape[1]) > NARROW]
    others = [p for p in learned if not any(p is q for q in inner)]
    adamw = torch.optim.AdamW(others, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True)
    return [adamw, Muon(inner, plan.rate, weight_decay=plan.weight_decay)] if inner else [adamw]


def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average towards the model: exponentially for weights, at once for what is counted."""
    with torch.no_grad():
        kept, new = average.state_dict(), model.state_dict()
        for name, value in kept.items():
            if value.is_floating_point():
                value.lerp_(new[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(new[name])


def facts_of(state_file: Path) -> dict[str, int]:
    """What a run has taken so far: steps, examples and seconds."""
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    return {"steps": state["step"], "examples": state["examples"], "seconds": round(state["seconds"])}


def _resumed(path: Path, model: nn.Module, average: nn.Module, optimizers) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return state["step"], state["seconds"]


def _store(path: Path, model: nn.Module, average: nn.Module, optimizers, counts: dict[str, float]) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        **counts,
    }
    written(path, lambda partial: torch.save(state, partial))


def exported(weights: dict[str, Tensor], path: Path, notes: dict[str, str], eight_bits: bool = False) -> None:
    """Store weights in half precision, or large ones in eight bits."""
    smaller = packed if eight_bits else in_half_precision
    stored = {name: value.contiguous().cpu() for name, value in smaller(weights).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    written(path, lambda partial: save_file(stored, str(partial), metadata=notes))


def written(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    writer(partial)
    os.replace(partial, path)


def channels_last(model: M) -> M:
    """The layout that convolutions on a CPU are fastest in. In place."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
