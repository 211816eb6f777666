"""Training samples of a textual slider (Concept Sliders, arXiv 2311.12092).

A sample is a latent of a rollout, with the prediction that the slider is to learn there (eq. 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ends import Answers
from .eta_choice import choose_for
from .objectives import textual_target
from .recipe import TextualRecipe
from .rollout import roll_out
from .rollout_predictions import Asked, RolloutPredictions
from .samples import Sample, SampleSource, Warnings

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from .trainable_layers import TrainableLayers


POOL = 4  # rollouts that samples are taken from in turn
HELD_OUT = 2  # latents of the rollout that is held out


class TextualSamples(SampleSource):
    """Endless samples: the latents of rollouts at each of their sigmas, with the frozen model's predictions there.

    A rollout passes through `recipe.rollout_steps` sigmas, and what the frozen model predicts at a latent does not
    change: so one rollout gives `recipe.samples_per_rollout` samples, each sigma at one sign of the slider and then
    at the other.
    Samples one after the other come from different rollouts: `POOL` of them take turns, and when one is used up
    another takes its place. The first ones are cut short, each to another length, so that never many end together: at
    batch 1 a slider would otherwise learn from one image for many steps, and forget the one before.
    Of the phrases to preserve, `recipe.phrases_per_sigma` are predicted with at a sigma. Where there are more they
    take turns, which over many rollouts is the mean over all; the public code takes one an iteration, and has it in
    every prompt.
    Rollouts are of the frozen model, as the paper has it; but the share `recipe.on_policy_rollouts` of them is made
    with the slider on (the public code does so always), each batch entry at its own sign, in the steps that are
    trained on: there it learns what to preserve in images that it has changed, see `objectives.preserved_target`.

    A concept with an eta of 0 gets one by auditions before the first sample, see `eta_choice`.

    shape: (B, C, ...) of the latents. The pool holds 3 x rollout_steps x POOL of them, in float32 on the CPU.
    warnings: gets a sentence for every concept whose ends the model hardly tells apart along its first rollout.
    Raises ValueError, with the first rollout that shows it, if it tells those of no concept apart.
    """

    def __init__(
        self,
        denoiser: DiffusionPredictor,
        layers: TrainableLayers,
        recipe: TextualRecipe,
        shape: tuple[int, ...],
        generator: torch.Generator,
        warnings: Warnings | None = None,
    ):
        self.denoiser, self.layers, self.recipe = denoiser, layers, recipe
        self.warnings = Warnings() if warnings is None else warnings
        self._answers: dict[int, Answers] = {}  # by concept, along the first rollout of each
        self.shape, self.generator = shape, generator
        self._concepts = recipe.concepts  # with their etas, once those are chosen
        self._moved: list[float] = []  # by the auditions that chose them
        self._weights = torch.tensor([concept.weight for concept in recipe.concepts])
        self._pool: list[dict[str, Any]] = []
        self._turn = 0  # the rollout in the pool that gives the next sample

    def __next__(self) -> Sample:
        if not self._moved:
            self._choose_etas()
        if self._turn == len(self._pool):  # the pool is still being filled
            self._pool.append(self._roll_out(-(-self.recipe.samples_per_rollout * (self._turn + 1) // POOL)))
        elif not self._pool[self._turn]["waiting"]:
            self._pool[self._turn] = self._roll_out(self.recipe.samples_per_rollout)
        rollout = self._pool[self._turn]
        self._turn = (self._turn + 1) % POOL
        return self._sample(rollout, *rollout["waiting"].pop(0))

    def held_out(self) -> list[Sample]:
        """Return samples at +1 and at -1 of rollouts by other seeds, at the sigmas of a schedule with one step more.

        It shares none with the schedule of training but the first, which is left out. All phrases are asked for.
        """
        steps = self.recipe.rollout_steps + 1
        recipe = replace(
            self.recipe, rollout_steps=steps, phrases_per_sigma=0, on_policy_rollouts=0.0, both_signs=False
        )
        generator = torch.Generator().manual_seed((self.recipe.seed + 1) % 2**64)
        apart = TextualSamples(self.denoiser, self.layers, recipe, (HELD_OUT, *self.shape[1:]), generator)
        apart.restore({**self.state(), "turn": 0, "pool": []})
        apart._answers = self._answers
        rollouts = [apart._roll_out(steps, concept) for concept in range(len(self._concepts))]
        return [
            apart._sample(rollout, step, flip)
            for rollout in rollouts
            for step in sorted({step for step, _ in rollout["waiting"] if step})
            for flip in (1, -1)
        ]

    def record(self) -> dict[str, Any]:
        return {"etas": [concept.eta for concept in self._concepts], "audition_moved": list(self._moved)}

    def state(self) -> dict[str, Any]:
        pool = [{**rollout, "waiting": [*rollout["waiting"]]} for rollout in self._pool]
        return {"turn": self._turn, "pool": pool, **self.record()}

    def restore(self, state: dict[str, Any]) -> None:
        etas, self._moved = state["etas"], list(state["audition_moved"])
        self._concepts = tuple(replace(each, eta=eta) for each, eta in zip(self._concepts, etas, strict=True))
        self._turn = state["turn"]
        self._pool = [{**rollout, "waiting": [tuple(w) for w in rollout["waiting"]]} for rollout in state["pool"]]

    def _choose_etas(self) -> None:
        shape = self.shape[1:]
        choices = [choose_for(self.denoiser, each, self.recipe, shape) for each in self._concepts]
        self._concepts = tuple(replace(each, eta=c.eta) for each, c in zip(self._concepts, choices, strict=True))
        self._moved = [choice.moved for choice in choices]

    def _sample(self, rollout: dict[str, Any], step: int, flip: int) -> Sample:
        """Return the sample at a step of a rollout. flip: +1 or -1, a factor of its batch entries' signs."""
        device, concept = self.denoiser.device, self._concepts[rollout["concept"]]
        signs = rollout["signs"] * flip
        # (B,) -> (B, 1, ...), the edit at +1 and its opposite at -1
        eta = concept.signed_eta * signs.view(-1, *(1 for _ in self.shape[1:]))
        target = textual_target(rollout["d_target"][step], rollout["d_change"][step], eta)
        x, sigma = rollout["x"][step].to(device), rollout["sigmas"][step].to(device)
        return Sample(x, sigma, target.to(device), signs[:, None].to(device), concept.target)

    def _roll_out(self, count: int, concept: int | None = None) -> dict[str, Any]:
        """Make a rollout for `count` samples, with every prediction that they need.

        concept: the index of the one that it is of; None draws one by their weights.
        """
        recipe, generator, device = self.recipe, self.generator, self.denoiser.device
        chosen = int(torch.multinomial(self._weights, 1, generator=generator)) if concept is None else concept
        noise = torch.randn(self.shape, generator=generator).to(device)
        signs = self._signs()
        on_policy = bool(torch.rand((), generator=generator) < recipe.on_policy_rollouts)
        waiting = self._steps_and_flips(count, on_policy)
        strengths = (signs if on_policy else torch.zeros_like(signs)).to(device)
        phrases = self._phrases_in_turn(len(recipe.concepts[chosen].phrases))
        steps = {step for step, _ in waiting}
        asked = Asked(recipe.concepts[chosen], phrases, steps, self._trained_steps(), recipe.guidance)
        twins = on_policy and recipe.preserve_in_target and bool(asked.concept.preserve)
        predictions = RolloutPredictions(self.denoiser, self.layers, asked, strengths, twins)
        sigmas = self.denoiser.sigmas(recipe.rollout_steps)[: max(steps) + 2]  # what lies beyond is not needed
        noise = torch.cat([noise, noise]) if twins else noise
        trajectory = roll_out(predictions, noise, sigmas, self.denoiser.scale_noise)
        x = trajectory.x[:, : len(signs)].contiguous()  # without the twins' memory behind it, here and in checkpoints
        if chosen not in self._answers:
            self._answers[chosen] = predictions.answers(x, sigmas)
            self._check_answers(chosen)
        return {
            "concept": chosen,
            "signs": signs,
            "waiting": waiting,
            "x": x.cpu(),
            "sigmas": trajectory.sigmas.cpu(),
            "d_target": torch.stack(predictions.d_target).cpu(),
            "d_change": torch.stack(predictions.d_change).cpu(),
        }

    def _check_answers(self, chosen: int) -> None:
        """Warn if there is little to learn from a concept; raise ValueError if there is nothing from any."""
        concept, answers = self.recipe.concepts[chosen], self._answers[chosen]
        if answers.differ_little:
            self.warnings.add(answers.said_of(concept))
        if len(self._answers) == len(self.recipe.concepts) and all(each.are_equal for each in self._answers.values()):
            raise ValueError(f"{answers.said_of(concept)} There is nothing to learn; take other prompts.")

    def _signs(self) -> Tensor:
        """Draw the strengths trained at, (B,): +1, or -1 too where both signs are trained."""
        signs = torch.ones(self.shape[0])
        if self.recipe.both_signs:
            signs -= 2.0 * torch.randint(0, 2, signs.shape, generator=self.generator)
        return signs

    def _phrases_in_turn(self, count: int) -> Iterator[list[int]]:
        """For one sigma after the other, yield the phrases (of `count`) to predict with: all of them in turn.

        Phrases that stand one after the other are predicted with together, in a random order of these groups: where
        each is followed by its opposite, no group pulls towards either.
        """
        at_once = min(self.recipe.phrases_per_sigma or count, count)
        firsts = range(0, lcm(count, at_once), at_once)
        while True:
            for turn in torch.randperm(len(firsts), generator=self.generator).tolist():
                yield [(firsts[turn] + place) % count for place in range(at_once)]

    def _trained_steps(self) -> range:
        """The steps of a rollout that samples are taken from: at least one."""
        recipe = self.recipe
        start, end = (round(part * recipe.rollout_steps) for part in (recipe.start_percent, recipe.end_percent))
        start = min(start, recipe.rollout_steps - 1)
        return range(start, max(end, start + 1))

    def _steps_and_flips(self, count: int, on_policy: bool) -> list[tuple[int, int]]:
        """Draw (step of the rollout, factor of the signs) for `count` samples.

        All steps come twice, in random orders, before any comes a third time. Half of the steps come at one sign
        first, the others at the other. An image that the slider has made at a sign is learned from at that sign.
        """
        steps = torch.tensor(self._trained_steps())
        flipping = self.recipe.both_signs and not on_policy
        drawn: list[tuple[int, int]] = []
        while len(drawn) < count:
            flips = [-1 if flipping and place % 2 else 1 for place in range(len(steps))]
            first = steps[torch.randperm(len(steps), generator=self.generator)].tolist()
            flip_of = dict(zip(first, flips, strict=True))
            again = steps[torch.randperm(len(steps), generator=self.generator)].tolist()
            drawn += [(step, flip_of[step]) for step in first]
            drawn += [(step, -flip_of[step] if flipping else 1) for step in again]
        return drawn[:count]
