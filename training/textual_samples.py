"""Training samples of a textual slider (Concept Sliders, arXiv 2311.12092)."""

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
    from ..comfy_host.denoiser import Denoiser
    from .trainable_layers import TrainableLayers


# Trajectories that samples are taken from in turn
POOL = 4


class TextualSamples:
    """Endless training samples: the noise levels of trajectories, with the frozen model's answers there.

    A trajectory passes through every noise level, and what the frozen model says at a frozen latent does not change:
    so one rollout gives `recipe.samples_per_rollout` samples, each level at one sign of the slider and then at the
    other.
    Samples one after the other come from different trajectories: `POOL` of them take turns, and when one is used up
    another is rolled out in its place. The first ones are cut short, each to another length, so that never many end
    together: at batch 1 a slider would otherwise learn from one picture for many steps, and forget the one before.
    Of the phrases held fixed, `recipe.phrases_per_sigma` are asked about at a level. Where there are more they take
    turns, which over many trajectories is the mean over all; the public code asks about one an iteration.
    Most trajectories run the bare model, as the paper has it. A share of them runs with the slider on (the public
    code does so always), each row at its own sign: there it learns what to hold in pictures that it has changed.

    shape: (B, C, ...) of the latents. The pool holds 3 x rollout_steps x POOL of them, in float32 on the CPU.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: TrainableLayers,
        recipe: TextualRecipe,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ):
        self.denoiser, self.layers, self.recipe = denoiser, layers, recipe
        self.shape, self.generator = shape, generator
        self._weights = torch.tensor([concept.weight for concept in recipe.concepts])
        self._pool: list[dict[str, Any]] = []
        self._turn = 0  # whose sample is next

    def __next__(self) -> Sample:
        if self._turn == len(self._pool):  # the pool is still being filled
            self._pool.append(self._rolled_out(-(-self.recipe.samples_per_rollout * (self._turn + 1) // POOL)))
        elif not self._pool[self._turn]["waiting"]:
            self._pool[self._turn] = self._rolled_out(self.recipe.samples_per_rollout)
        held = self._pool[self._turn]
        self._turn = (self._turn + 1) % POOL
        return self._point(held, *held["waiting"].pop(0))

    def state(self) -> dict[str, Any]:
        return {"turn": self._turn, "pool": [{**held, "waiting": list(held["waiting"])} for held in self._pool]}

    def restore(self, state: dict[str, Any]) -> None:
        self._turn = state["turn"]
        self._pool = [{**held, "waiting": [tuple(visit) for visit in held["waiting"]]} for held in state["pool"]]

    def _point(self, held: dict[str, Any], level: int, flip: int) -> Sample:
        """A level of a trajectory; flip: +1 or -1, a factor of its rows' signs."""
        device, concept = self.denoiser.device, self.recipe.concepts[held["concept"]]
        signs = held["signs"] * flip
        # (B,) -> (B, 1, ...), the edit at +1 and its opposite at -1
        eta = concept.signed_eta * signs.view(-1, *(1 for _ in self.shape[1:]))
        target = textual_target(held["d_target"][level], held["d_change"][level], eta)
        x, sigma = held["x"][level].to(device), held["sigmas"][level].to(device)
        return Sample(x, sigma, target.to(device), signs[:, None].to(device), concept.target)

    def _rolled_out(self, count: int) -> dict[str, Any]:
        """A new trajectory of one of the concepts for `count` samples, with everything asked about that they need."""
        recipe, generator, device = self.recipe, self.generator, self.denoiser.device
        chosen = int(torch.multinomial(self._weights, 1, generator=generator))
        noise = torch.randn(self.shape, generator=generator).to(device)
        signs = self._signs()
        own = bool(torch.rand((), generator=generator) < recipe.on_policy_rollouts)
        visits = self._visits(count, own)
        acting = (signs if own else torch.zeros_like(signs)).to(device)
        asked = self._phrases_in_turn(len(recipe.concepts[chosen].phrases))
        rollout = _Rollout(self, recipe.concepts[chosen], acting, visits, asked)
        last = max(level for level, _ in visits)
        sigmas = self.denoiser.sigmas(recipe.rollout_steps)[: last + 2]  # what lies beyond is not asked for
        trajectory = roll_out(rollout, noise, sigmas, self.denoiser.scale_noise)
        return {
            "concept": chosen,
            "signs": signs,
            "waiting": visits,
            "x": trajectory.x.cpu(),
            "sigmas": trajectory.sigmas.cpu(),
            "d_target": torch.stack(rollout.d_target).cpu(),
            "d_change": torch.stack(rollout.d_change).cpu(),
        }

    def _signs(self) -> Tensor:
        """(B,) of the strengths trained at: +1, or -1 too where both are trained."""
        signs = torch.ones(self.shape[0])
        if self.recipe.both_signs:
            signs -= 2.0 * torch.randint(0, 2, signs.shape, generator=self.generator)
        return signs

    def _phrases_in_turn(self, count: int) -> Iterator[list[int]]:
        """For one noise level after the other, which of `count` phrases to ask about: all in turn."""
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

    def _visits(self, count: int, own: bool) -> list[tuple[int, int]]:
        """(level, factor of the signs) of `count` samples to come: no level a third time before all had two.

        Half of the levels come at one sign first, the others at the other. A picture that the slider has made at a
        sign is learned from at that sign.
        """
        recipe = self.recipe
        start, end = (
            round(fraction * recipe.rollout_steps) for fraction in (recipe.start_percent, recipe.end_percent)
        )
        start = min(start, recipe.rollout_steps - 1)
        levels = torch.arange(start, max(end, start + 1))
        flipping = recipe.both_signs and not own
        visits: list[tuple[int, int]] = []
        while len(visits) < count:
            flips = [-1 if flipping and place % 2 else 1 for place in range(len(levels))]
            first = levels[torch.randperm(len(levels), generator=self.generator)].tolist()
            flip_of = dict(zip(first, flips))
            again = levels[torch.randperm(len(levels), generator=self.generator)].tolist()
            visits += [(level, flip_of[level]) for level in first]
            visits += [(level, -flip_of[level] if flipping else 1) for level in again]
        return visits[:count]


class _Rollout:
    """The guided prediction along a trajectory, which keeps the frozen model's answers on the way.

    Everything asked about at a noise level goes to the model in one batch: the target and the empty prompt, with the
    slider at `strengths`, (B,), and without it the target and both ends of the concept where a sample will be, with
    the phrases that `phrases` gives for the level.
    """

    def __init__(
        self,
        samples: TextualSamples,
        concept: Concept,
        strengths: Tensor,
        visits: list[tuple[int, int]],
        phrases: Iterator[list[int]],
    ):
        self.samples, self.strengths, self.concept, self.phrases = samples, strengths, concept, phrases
        self.guidance, self.holds_target = samples.recipe.guidance, samples.recipe.preserve_in_target
        self.visited = {level for level, _ in visits}
        self.d_target: list[Tensor] = []
        self.d_change: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), guided."""
        target = self.concept.target
        guiding = [target, ""] if self.guidance != 1 and target else [target]
        frozen = self._frozen_prompts() if len(self.d_target) in self.visited else []
        strengths = torch.zeros(len(guiding) + len(frozen), len(x), 1, device=x.device)
        strengths[: len(guiding)] = self.strengths[:, None]
        answers = self.samples.denoiser.predict(x, sigma, [*guiding, *frozen], self.samples.layers, strengths)
        self._keep(answers[0], answers[len(guiding) :])
        return classifier_free(answers[0], answers[1], self.guidance) if len(guiding) > 1 else answers[0]

    def _frozen_prompts(self) -> list[str]:
        """With the phrases whose turn it is: the target, unless the guidance asks the same, and both ends."""
        concept, turn = self.concept, next(self.phrases)
        more, less = zip(*(concept.ends()[phrase] for phrase in turn))
        targets = [concept.targets()[phrase] for phrase in turn] if self.holds_target else [concept.target]
        if targets == [concept.target] and not self.strengths.any():
            targets = []
        self.ends = len(turn)
        return [*targets, *more, *less]

    def _keep(self, d_guiding: Tensor, frozen: Tensor) -> None:
        """The two terms of the target at this level; zeros where no sample will be."""
        if not len(frozen):
            self.d_target.append(torch.zeros_like(d_guiding))
            self.d_change.append(torch.zeros_like(d_guiding))
            return
        d_targets, d_more, d_less = frozen.split([len(frozen) - 2 * self.ends, self.ends, self.ends])
        self.d_target.append(d_targets.mean(dim=0) if len(d_targets) else d_guiding)
        self.d_change.append(textual_change(d_more, d_less))


@dataclass(frozen=True)
class Trajectory:
    """x: (K, B, C, ...), the latents met on the way. sigmas: (K,), their noise levels, falling."""

    x: Tensor
    sigmas: Tensor


def roll_out(
    guided: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor, scale_noise: Callable
) -> Trajectory:
    """Euler's method along d: x <- x + (sigma_next - sigma) * d(x, sigma).

    guided: the frozen model's guided prediction d(x, sigma) for latents (B, C, ...) at one noise level.
    noise: (B, C, ...), standard normal. sigmas: (K + 1,), falling; the last is not entered.
    scale_noise: the model's own map from noise to the latent at the first noise level.
    """
    x = scale_noise(sigmas[0], noise)
    met = []
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        met.append(x)
        x = x + (following - sigma) * guided(x, sigma)
    return Trajectory(torch.stack(met), sigmas[:-1])
