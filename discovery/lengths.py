"""How far directions go: the mean change of the embedding over whole sampling runs, and what makes strength 1 of it.

The loss leaves the length of a slider open. A single prediction tells little of it, as a sampling run adds it up step
by step; so each slider is sampled with, from noise to image, on seeds that nothing was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..comfy_host.errors import InterruptProcessingException
from ..training.rollout import roll_out
from .trajectories import Embed, Sampling, Trajectories, clean_latents, guided, noise_of, prompts_of

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from ..training.trainable_layers import TrainableLayers

RUNS = 8  # sampling runs of one direction, of all prompts together
ADDS_UP = 2.4  # times the change of a single prediction: what a whole run comes to, about
MOST_SCALING = 30.0  # of a slider that hardly moves anything
MOST_SHORTENED, MOST_LENGTHENED = 4.0, 1.5  # times, by what came of a guess: beyond it images need not follow
SEEN_AT = (0.25, 0.5, 0.75)  # of sampling: where single predictions are looked at


@dataclass(frozen=True)
class Lengths:
    """Of K sliders as they were trained.

    scales: (K,), what to multiply each by. changes: (K, D), the mean change of the embedding from strength 0 to 1 of
    the scaled sliders. sampled: True if they are of whole sampling runs, and not a guess by single predictions.
    """

    scales: Tensor
    changes: Tensor
    sampled: bool


class SamplingRuns:
    """Sampling runs of the same noise, with one slider on or with none.

    prompts: of which each has `noise`, (N, C, ...).
    """

    def __init__(
        self,
        denoiser: DiffusionPredictor,
        layers: TrainableLayers,
        phi: Embed,
        prompts: Sequence[str],
        noise: Tensor,
        sampling: Sampling,
    ):
        self.denoiser, self.layers, self.phi = denoiser, layers, phi
        self.prompts, self.noise, self.sampling = prompts, noise.to(denoiser.device), sampling
        self.sigmas = denoiser.sigmas(sampling.steps, sampling.scheduler)
        self._still = [self._ends(prompt, 0, 0.0) for prompt in prompts]

    def change(self, index: int, strength: float) -> Tensor:
        """Return the mean change of the embedding, (D,), that a slider makes at a strength."""
        moved = [self._ends(prompt, index, strength) - still for prompt, still in zip(self.prompts, self._still)]
        return torch.cat(moved).mean(0)

    @torch.no_grad()
    def _ends(self, prompt: str, index: int, strength: float) -> Tensor:
        """(N, D), embeddings of what is sampled."""
        prompts = prompts_of(prompt, self.sampling.guidance)
        strengths = torch.zeros(len(prompts), len(self.noise), self.layers.count, device=self.noise.device)
        strengths[..., index] = strength

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            d = self.denoiser.predict(x, sigma, prompts, self.layers, strengths)
            return guided(d, self.sampling.guidance)

        rolled = roll_out(predict, self.noise, self.sigmas, self.denoiser.scale_noise)
        return self.phi(rolled.end).cpu()


def runs_on_held_out(
    denoiser: DiffusionPredictor,
    layers: TrainableLayers,
    phi: Embed,
    held_out: Sequence[Trajectories],
    sampling: Sampling,
) -> SamplingRuns:
    """Return sampling runs of the noise that held-out trajectories began with, the first of each prompt."""
    count = min(len(held_out[0]), -(-RUNS // len(held_out)))
    noise = torch.stack([noise_of(tuple(held_out[0].x.shape[2:]), sampling.seed, at) for at in range(count)])
    return SamplingRuns(denoiser, layers, phi, [each.prompt for each in held_out], noise, sampling)


def sampled_lengths(
    make_runs: Callable[[], SamplingRuns],
    guess: Lengths,
    directions: Tensor,
    targets: Tensor,
    report: Callable[[int, int], None],
) -> Lengths:
    """Sample with each slider at a guessed scale, and set it so that strength 1 goes as far as it should.

    guess: the scales to sample at, near enough for lengths to be in proportion. directions: (K, D). targets: (K,),
    how far. report: told how many directions were sampled, of how many. A cancel leaves the guess. One that goes far
    astray from its direction stays shorter: its images would break first.
    """
    changes = []
    try:
        runs = make_runs()
        for index, scale in enumerate(guess.scales.tolist()):
            changes.append(runs.change(index, scale))
            report(index + 1, len(directions))
    except InterruptProcessingException:
        return guess
    moved = torch.stack(changes)
    factors = scaling(moved, directions, targets).clamp(1 / MOST_SHORTENED, MOST_LENGTHENED)
    return Lengths(factors * guess.scales, factors[:, None] * moved, True)


def guessed_lengths(
    denoiser: DiffusionPredictor,
    layers: TrainableLayers,
    phi: Embed,
    held_out: Sequence[Trajectories],
    directions: Tensor,
    targets: Tensor,
) -> Lengths:
    """Guess the scales from single predictions. A cancel does not end it: without it nothing trained is of use."""
    while True:
        try:
            changes = ADDS_UP * predicted_changes(denoiser, layers, phi, held_out[0].part(slice(RUNS)))
            break
        except InterruptProcessingException:
            continue
    scales = scaling(changes, directions, targets).clamp(1 / MOST_SCALING, MOST_SCALING)
    return Lengths(scales, scales[:, None] * changes, False)


@torch.no_grad()
def predicted_changes(denoiser: DiffusionPredictor, layers: TrainableLayers, phi: Embed, of: Trajectories) -> Tensor:
    """Return how far each slider at strength 1 moves the embedding of single predictions, on average: (K, D)."""
    steps = seen_steps(of)
    total = torch.zeros(layers.count, of.embeddings.shape[-1])
    for step in steps:
        x, sigma = of.x[:, step].to(denoiser.device), of.sigmas[step].to(denoiser.device)
        for index in range(layers.count):
            strengths = torch.zeros(1, len(x), layers.count, device=x.device)
            strengths[..., index] = 1
            d = denoiser.predict(x, sigma, [of.prompt], layers, strengths)[0]
            total[index] += (phi(clean_latents(x, sigma, d)).cpu() - of.embeddings[:, step]).sum(0)
    return total / (len(steps) * len(of))


def seen_steps(of: Trajectories) -> list[int]:
    """Return the indices of the steps at which single predictions are looked at."""
    return sorted({int(share * len(of.sigmas)) for share in SEEN_AT})


def scaling(changes: Tensor, directions: Tensor, targets: Tensor) -> Tensor:
    """Return what to multiply each slider by, so that its change is as long as its target along its direction: (K,).

    Positive, also for a slider that goes the wrong way: that is for the figures to say.
    """
    along = (changes * directions).sum(1).abs()
    return targets / along.clamp(min=1e-8)
