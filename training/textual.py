"""Training points of a textual slider (Concept Sliders, arXiv 2311.12092)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .objectives import textual_change, textual_target
from .points import Point
from .recipe import Concept, TextualRecipe
from .rollouts import classifier_free, roll_out

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .new_layers import NewLayers


class TextualPoints:
    """Endless training points: the noise levels of trajectories, with the frozen model's answers there.

    A trajectory passes through every noise level, and what the frozen model says at a frozen latent does not change:
    so one rollout answers for `recipe.visits` points, each level at one sign of the slider and then at the other.
    Most trajectories run the bare model, as the paper has it. A share of them runs with the slider on (the public
    code does so always), each row at its own sign: there it learns what to hold in pictures that it has changed.

    shape: (B, C, ...) of the latents.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: NewLayers,
        recipe: TextualRecipe,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ):
        self.denoiser, self.layers, self.recipe = denoiser, layers, recipe
        self.shape, self.generator = shape, generator
        self._weights = torch.tensor([concept.weight for concept in recipe.concepts])
        self._held: dict[str, Any] = {"waiting": []}

    def __next__(self) -> Point:
        if not self._held["waiting"]:
            self._roll_out()
        held = self._held
        level, flip = held["waiting"].pop(0)
        concept = self.recipe.concepts[held["concept"]]
        signs = held["signs"] * flip
        # (B,) -> (B, 1, ...), the edit at +1 and its opposite at -1
        eta = concept.signed_eta * signs.view(-1, *(1 for _ in self.shape[1:]))
        target = textual_target(held["d_target"][level], held["d_change"][level], eta)
        return Point(held["x"][level], held["sigmas"][level], target, signs[:, None], concept.target)

    def state(self) -> dict[str, Any]:
        return {**self._held, "waiting": list(self._held["waiting"])}

    def restore(self, state: dict[str, Any]) -> None:
        device = self.denoiser.device
        self._held = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in state.items()}
        self._held["waiting"] = [tuple(visit) for visit in state["waiting"]]

    def _roll_out(self) -> None:
        """A new trajectory of one of the concepts, with everything asked about that its points need."""
        recipe, generator = self.recipe, self.generator
        chosen = int(torch.multinomial(self._weights, 1, generator=generator))
        noise = torch.randn(self.shape, generator=generator).to(self.denoiser.device)
        signs = self._signs().to(self.denoiser.device)
        own = bool(torch.rand((), generator=generator) < recipe.own_rollouts)
        visits = self._visits(own)
        rollout = _Rollout(self, recipe.concepts[chosen], signs if own else torch.zeros_like(signs), visits)
        last = max(level for level, _ in visits)
        sigmas = self.denoiser.sigmas(recipe.rollout_steps)[: last + 2]  # what lies beyond is not asked for
        trajectory = roll_out(rollout, noise, sigmas, self.denoiser.scale_noise)
        self._held = {
            "concept": chosen,
            "signs": signs,
            "waiting": visits,
            "x": trajectory.x,
            "sigmas": trajectory.sigmas,
            "d_target": torch.stack(rollout.d_target),
            "d_change": torch.stack(rollout.d_change),
        }

    def _signs(self) -> Tensor:
        """(B,) of the strengths trained at: +1, or -1 too where both are trained."""
        signs = torch.ones(self.shape[0])
        if self.recipe.both_signs:
            signs -= 2.0 * torch.randint(0, 2, signs.shape, generator=self.generator)
        return signs

    def _visits(self, own: bool) -> list[tuple[int, int]]:
        """(level, factor of the signs) of the points to come: no level a third time before all had two.

        A picture that the slider has made at a sign is learned from at that sign.
        """
        recipe = self.recipe
        start, end = (round(fraction * recipe.rollout_steps) for fraction in recipe.noise_range)
        levels = torch.arange(min(start, recipe.rollout_steps - 1), max(end, start + 1))
        flips = (1, -1) if recipe.both_signs and not own else (1, 1)
        visits: list[tuple[int, int]] = []
        while len(visits) < recipe.visits:
            order = levels[torch.randperm(len(levels), generator=self.generator)].tolist()
            visits += [(level, flip) for flip in flips for level in order]
        return visits[: recipe.visits]


class _Rollout:
    """The guided prediction along a trajectory, which keeps the frozen model's answers on the way.

    Everything asked about at a noise level goes to the model in one batch: the target and the empty prompt, with the
    slider at `strengths`, (B,), and without it the target and both ends of the concept where a point will be.
    """

    def __init__(self, points: TextualPoints, concept: Concept, strengths: Tensor, visits: list[tuple[int, int]]):
        self.points, self.strengths = points, strengths
        self.target, self.guidance = concept.target, points.recipe.guidance
        self.targets = concept.targets() if points.recipe.held_target else (concept.target,)
        self.more, self.less = zip(*concept.ends())
        self.visited = {level for level, _ in visits}
        self.d_target: list[Tensor] = []
        self.d_change: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), guided."""
        guiding = [self.target, ""] if self.guidance != 1 and self.target else [self.target]
        frozen = self._frozen_prompts() if len(self.d_target) in self.visited else []
        strengths = torch.zeros(len(guiding) + len(frozen), len(x), 1, device=x.device)
        strengths[: len(guiding)] = self.strengths[:, None]
        answers = self.points.denoiser.ask(x, sigma, [*guiding, *frozen], self.points.layers, strengths)
        self._keep(answers[0], answers[len(guiding) :])
        return classifier_free(answers[0], answers[1], self.guidance) if len(guiding) > 1 else answers[0]

    def _frozen_prompts(self) -> list[str]:
        """What is asked of the frozen model beside the guidance, which may have asked for the target already."""
        return [*(() if self._target_is_guiding else self.targets), *self.more, *self.less]

    @property
    def _target_is_guiding(self) -> bool:
        return self.targets == (self.target,) and not self.strengths.any()

    def _keep(self, d_guiding: Tensor, frozen: Tensor) -> None:
        """The two terms of the target at this level; zeros where no point will be."""
        if not len(frozen):
            self.d_target.append(torch.zeros_like(d_guiding))
            self.d_change.append(torch.zeros_like(d_guiding))
            return
        asked = 0 if self._target_is_guiding else len(self.targets)
        d_target, d_more, d_less = frozen.split([asked, len(self.more), len(self.less)])
        self.d_target.append(d_target.mean(dim=0) if asked else d_guiding)
        self.d_change.append(textual_change(d_more, d_less))
