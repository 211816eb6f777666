"""Training samples of a textual slider (Concept Sliders, arXiv 2311.12092).

A sample is a latent of a rollout, with the prediction that the slider is to learn there (eq. 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from .concept import Concept
from .objectives import textual_change, textual_target
from .recipe import TextualRecipe
from .samples import Sample

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from .trainable_layers import TrainableLayers


POOL = 4  # rollouts that samples are taken from in turn


class TextualSamples:
    """Endless samples: the latents of rollouts at every sigma, with the frozen model's predictions there.

    A rollout passes through every sigma, and what the frozen model predicts at a latent does not change: so one
    rollout gives `recipe.samples_per_rollout` samples, each sigma at one sign of the slider and then at the other.
    Samples one after the other come from different rollouts: `POOL` of them take turns, and when one is used up
    another takes its place. The first ones are cut short, each to another length, so that never many end together: at
    batch 1 a slider would otherwise learn from one image for many steps, and forget the one before.
    Of the phrases to preserve, `recipe.phrases_per_sigma` are predicted with at a sigma. Where there are more they
    take turns, which over many rollouts is the mean over all; the public code takes one an iteration.
    Most rollouts are of the frozen model, as the paper has it. The share `recipe.on_policy_rollouts` of them is made
    with the slider on (the public code does so always), each batch entry at its own sign: there it learns what to
    preserve in images that it has changed.

    shape: (B, C, ...) of the latents. The pool holds 3 x rollout_steps x POOL of them, in float32 on the CPU.
    """

    def __init__(
        self,
        denoiser: DiffusionPredictor,
        layers: TrainableLayers,
        recipe: TextualRecipe,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ):
        self.denoiser, self.layers, self.recipe = denoiser, layers, recipe
        self.shape, self.generator = shape, generator
        self._weights = torch.tensor([concept.weight for concept in recipe.concepts])
        self._pool: list[dict[str, Any]] = []
        self._turn = 0  # the rollout in the pool that gives the next sample

    def __next__(self) -> Sample:
        if self._turn == len(self._pool):  # the pool is still being filled
            self._pool.append(self._roll_out(-(-self.recipe.samples_per_rollout * (self._turn + 1) // POOL)))
        elif not self._pool[self._turn]["waiting"]:
            self._pool[self._turn] = self._roll_out(self.recipe.samples_per_rollout)
        rollout = self._pool[self._turn]
        self._turn = (self._turn + 1) % POOL
        return self._sample(rollout, *rollout["waiting"].pop(0))

    def state(self) -> dict[str, Any]:
        return {"turn": self._turn, "pool": [{**rollout, "waiting": [*rollout["waiting"]]} for rollout in self._pool]}

    def restore(self, state: dict[str, Any]) -> None:
        self._turn = state["turn"]
        self._pool = [{**rollout, "waiting": [tuple(w) for w in rollout["waiting"]]} for rollout in state["pool"]]

    def _sample(self, rollout: dict[str, Any], step: int, flip: int) -> Sample:
        """Return the sample at a step of a rollout. flip: +1 or -1, a factor of its batch entries' signs."""
        device, concept = self.denoiser.device, self.recipe.concepts[rollout["concept"]]
        signs = rollout["signs"] * flip
        # (B,) -> (B, 1, ...), the edit at +1 and its opposite at -1
        eta = concept.signed_eta * signs.view(-1, *(1 for _ in self.shape[1:]))
        target = textual_target(rollout["d_target"][step], rollout["d_change"][step], eta)
        x, sigma = rollout["x"][step].to(device), rollout["sigmas"][step].to(device)
        return Sample(x, sigma, target.to(device), signs[:, None].to(device), concept.target)

    def _roll_out(self, count: int) -> dict[str, Any]:
        """Make a rollout of one of the concepts for `count` samples, with every prediction that they need."""
        recipe, generator, device = self.recipe, self.generator, self.denoiser.device
        chosen = int(torch.multinomial(self._weights, 1, generator=generator))
        noise = torch.randn(self.shape, generator=generator).to(device)
        signs = self._signs()
        on_policy = bool(torch.rand((), generator=generator) < recipe.on_policy_rollouts)
        waiting = self._steps_and_flips(count, on_policy)
        strengths = (signs if on_policy else torch.zeros_like(signs)).to(device)
        phrases = self._phrases_in_turn(len(recipe.concepts[chosen].phrases))
        predictions = _RolloutPredictions(self, recipe.concepts[chosen], strengths, waiting, phrases)
        last = max(step for step, _ in waiting)
        sigmas = self.denoiser.sigmas(recipe.rollout_steps)[: last + 2]  # what lies beyond is not needed
        trajectory = roll_out(predictions, noise, sigmas, self.denoiser.scale_noise)
        return {
            "concept": chosen,
            "signs": signs,
            "waiting": waiting,
            "x": trajectory.x.cpu(),
            "sigmas": trajectory.sigmas.cpu(),
            "d_target": torch.stack(predictions.d_target).cpu(),
            "d_change": torch.stack(predictions.d_change).cpu(),
        }

    def _signs(self) -> Tensor:
        """Draw the strengths trained at, (B,): +1, or -1 too where both signs are trained."""
        signs = torch.ones(self.shape[0])
        if self.recipe.both_signs:
            signs -= 2.0 * torch.randint(0, 2, signs.shape, generator=self.generator)
        return signs

    def _phrases_in_turn(self, count: int) -> Iterator[list[int]]:
        """For one sigma after the other, yield the phrases (of `count`) to predict with: all of them in turn."""
        at_once = self.recipe.phrases_per_sigma or count
        if at_once >= count:
            yield from repeat(list(range(count)))
        waiting: list[int] = []
        while True:
            if len(waiting) < at_once:
                fresh = torch.randperm(count, generator=self.generator).tolist()
                waiting += sorted(fresh, key=waiting.__contains__)  # those of this turn come last
            turn, waiting = waiting[:at_once], waiting[at_once:]
            yield turn

    def _steps_and_flips(self, count: int, on_policy: bool) -> list[tuple[int, int]]:
        """Draw (step of the rollout, factor of the signs) for `count` samples.

        All steps come twice, in random orders, before any comes a third time. Half of the steps come at one sign
        first, the others at the other. An image that the slider has made at a sign is learned from at that sign.
        """
        recipe = self.recipe
        start, end = (round(part * recipe.rollout_steps) for part in (recipe.start_percent, recipe.end_percent))
        start = min(start, recipe.rollout_steps - 1)
        steps = torch.arange(start, max(end, start + 1))
        flipping = recipe.both_signs and not on_policy
        drawn: list[tuple[int, int]] = []
        while len(drawn) < count:
            flips = [-1 if flipping and place % 2 else 1 for place in range(len(steps))]
            first = steps[torch.randperm(len(steps), generator=self.generator)].tolist()
            flip_of = dict(zip(first, flips, strict=True))
            again = steps[torch.randperm(len(steps), generator=self.generator)].tolist()
            drawn += [(step, flip_of[step]) for step in first]
            drawn += [(step, -flip_of[step] if flipping else 1) for step in again]
        return drawn[:count]


class _RolloutPredictions:
    """The guided prediction along a rollout, which keeps the frozen model's predictions on the way.

    All predictions at a sigma are asked for together: those of the target and the empty prompt, with the slider at
    `strengths` (B,); and without it, where a sample will be taken, those of the target and both ends of the concept,
    with the phrases that `phrases` gives for the sigma.
    """

    def __init__(
        self,
        samples: TextualSamples,
        concept: Concept,
        strengths: Tensor,
        steps_and_flips: list[tuple[int, int]],
        phrases: Iterator[list[int]],
    ):
        self.samples, self.strengths, self.concept, self.phrases = samples, strengths, concept, phrases
        self.guidance, self.preserve_in_target = samples.recipe.guidance, samples.recipe.preserve_in_target
        self.sampled = {step for step, _ in steps_and_flips}
        self.d_target: list[Tensor] = []
        self.d_change: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), guided."""
        target = self.concept.target
        guiding = [target, ""] if self.guidance != 1 and target else [target]
        frozen, ends = self._frozen_prompts() if len(self.d_target) in self.sampled else ([], 0)
        strengths = torch.zeros(len(guiding) + len(frozen), len(x), 1, device=x.device)
        strengths[: len(guiding)] = self.strengths[:, None]
        d = self.samples.denoiser.predict(x, sigma, [*guiding, *frozen], self.samples.layers, strengths)
        self._keep(d[0], d[len(guiding) :], ends)
        return classifier_free(d[0], d[1], self.guidance) if len(guiding) > 1 else d[0]

    def _frozen_prompts(self) -> tuple[list[str], int]:
        """Return the prompts to predict without the slider, and how many there are of each end, which come last.

        With the phrases whose turn it is: the target, unless the guidance has the same prediction, and both ends.
        """
        concept, turn = self.concept, next(self.phrases)
        more, less = zip(*(concept.ends()[phrase] for phrase in turn), strict=True)
        targets = [concept.target]
        if self.preserve_in_target:
            targets = [concept.targets()[phrase] for phrase in turn]
        if targets == [concept.target] and not self.strengths.any():
            targets = []
        return [*targets, *more, *less], len(turn)

    def _keep(self, d_guiding: Tensor, frozen: Tensor, ends: int) -> None:
        """Keep the two terms of the target at this sigma; zeros where no sample will be taken."""
        if not len(frozen):
            self.d_target.append(torch.zeros_like(d_guiding))
            self.d_change.append(torch.zeros_like(d_guiding))
            return
        d_targets, d_more, d_less = frozen.split([len(frozen) - 2 * ends, ends, ends])
        self.d_target.append(d_targets.mean(dim=0) if len(d_targets) else d_guiding)
        self.d_change.append(textual_change(d_more, d_less))


@dataclass(frozen=True)
class Trajectory:
    """x: (K, B, C, ...), the latents of a rollout. sigmas: (K,), falling."""

    x: Tensor
    sigmas: Tensor


def roll_out(
    guided: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    sigmas: Tensor,
    scale_noise: Callable[[Tensor, Tensor], Tensor],
) -> Trajectory:
    """Sample by Euler's method along d: x <- x + (sigma_next - sigma) * d(x, sigma).

    guided: the guided prediction d(x, sigma) for latents (B, C, ...). noise: (B, C, ...), standard normal.
    sigmas: (K + 1,), falling; no latent is kept at the last. scale_noise: the model's own map from noise to the
    latent at the first sigma.
    """
    x = scale_noise(sigmas[0], noise)
    latents = []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        latents.append(x)
        x = x + (following - sigma) * guided(x, sigma)
    return Trajectory(torch.stack(latents), sigmas[:-1])
