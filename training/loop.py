"""The training loop of a textual slider (Concept Sliders, arXiv 2311.12092)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .differentiable import differentiable
from .objectives import textual_loss, textual_target
from .recipe import Recipe
from .rollouts import classifier_free, roll_out

if TYPE_CHECKING:
    from ..sliders.bank import LayerBank
    from .denoiser import Denoiser
    from .in_place import NewLayers


@dataclass(frozen=True)
class Point:
    """One thing to learn. x, target: (B, C, ...). sigma: scalar. strengths: (B, 1), of the slider."""

    x: Tensor
    sigma: Tensor
    target: Tensor
    strengths: Tensor


@dataclass
class Progress:
    """How a run went: the loss of every step done, and whether it was stopped before its last."""

    losses: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def steps(self) -> int:
        return len(self.losses)


def train_textual(
    denoiser: Denoiser,
    layers: NewLayers,
    recipe: Recipe,
    shape: tuple[int, ...],
    generator: torch.Generator,
    should_stop: Callable[[], bool],
    after_step: Callable[[Progress, Point], None],
    cancelled: type[BaseException] | tuple = (),
) -> Progress:
    """Teach the layers the recipe's concept, on latents of `shape` (B, C, ...).

    should_stop: asked before every step; what has been learned by then is kept.
    after_step: told how it goes. cancelled: what the model raises when it is told to stop; the step is then
    dropped and what has been learned is kept. Raises FloatingPointError if the loss is no longer a finite number.
    """
    parameters = layers.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    progress = Progress()
    points = textual_points(denoiser, layers.bank, recipe, shape, generator)
    try:
        while progress.steps < recipe.steps and not should_stop():
            point = next(points)
            with differentiable(), layers.bank.acting(point.strengths):
                prediction = denoiser(point.x, point.sigma, [recipe.concept.target])[0]
                loss = textual_loss(prediction, point.target)
                loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"Training broke down at step {progress.steps + 1} of {recipe.steps}, noise level "
                    f"{float(point.sigma):.3g}: the loss is {loss.item()}. A lower learning rate than "
                    f"{recipe.learning_rate:g} may help."
                )
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.losses.append(loss.item())
            after_step(progress, point)
    except cancelled:
        pass
    progress.stopped = progress.steps < recipe.steps
    return progress


def textual_points(
    denoiser: Denoiser, bank: LayerBank, recipe: Recipe, shape: tuple[int, ...], generator: torch.Generator
) -> Iterator[Point]:
    """Endless training points: noise levels of trajectories, with the frozen model's answers there.

    A trajectory passes through every noise level, so each serves `recipe.visits` points. Most run the bare model,
    as the paper has it. A share of them runs with the slider on (the public code does so always): there it learns
    what to hold in pictures that it has changed itself.
    """
    sigmas = denoiser.sigmas(recipe.rollout_steps)
    start, end = (round(fraction * recipe.rollout_steps) for fraction in recipe.noise_range)
    levels = torch.arange(start, max(end, start + 1))
    while True:
        noise = torch.randn(shape, generator=generator).to(denoiser.device)
        signs = _signs(shape[0], recipe.both_signs, generator).to(denoiser.device)
        own = bool(torch.rand((), generator=generator) < recipe.own_rollouts)
        strengths = signs[:, None] if own else torch.zeros_like(signs[:, None])
        trajectory = roll_out(_guided(denoiser, bank, recipe, strengths), noise, sigmas, denoiser.scale_noise)
        for level in levels[torch.randperm(len(levels), generator=generator)[: recipe.visits]]:
            if not own:
                signs = _signs(shape[0], recipe.both_signs, generator).to(denoiser.device)
            x, sigma = trajectory.x[level], trajectory.sigmas[level]
            with torch.no_grad():
                target = _answer(denoiser, recipe, x, sigma, signs)
            yield Point(x, sigma, target, signs[:, None])


def _guided(
    denoiser: Denoiser, bank: LayerBank, recipe: Recipe, strengths: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The guided prediction at the target prompt, with the slider at these strengths, (B, 1)."""

    @torch.no_grad()
    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        with bank.acting(strengths.repeat(2, 1)):  # (B, 1) -> (2 * B, 1), prompt by prompt
            d_prompt, d_empty = denoiser(x, sigma, [recipe.concept.target, ""])
        return classifier_free(d_prompt, d_empty, recipe.guidance)

    return guided


def _answer(denoiser: Denoiser, recipe: Recipe, x: Tensor, sigma: Tensor, signs: Tensor) -> Tensor:
    """The target at (x, sigma) for rows with the slider at +1 or -1: the edit and its opposite."""
    targets = recipe.concept.targets() if recipe.held_target else (recipe.concept.target,)
    more, less = zip(*recipe.concept.ends())
    asked = denoiser(x, sigma, [*targets, *more, *less])  # (P or 1) + P + P predictions, (B, C, ...) each
    d_target, d_more, d_less = asked.split([len(targets), len(more), len(less)])
    eta = recipe.concept.eta * signs.view(-1, *(1 for _ in x.shape[1:]))
    return textual_target(d_target, d_more, d_less, eta)


def _signs(rows: int, both: bool, generator: torch.Generator) -> Tensor:
    """(rows,) of +1, or of +1 and -1 in turn from a random one."""
    if not both:
        return torch.ones(rows)
    first = int(torch.randint(2, (1,), generator=generator))
    return 1.0 - 2.0 * ((torch.arange(rows) + first) % 2)
