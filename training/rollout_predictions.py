"""What a textual slider's rollouts ask the model for, step by step (Concept Sliders, arXiv 2311.12092)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from .concept import Concept
from .ends import ABOVE_ROUNDING, NOTHING, Answers, relative_size, share_again
from .objectives import preserved_target, textual_change

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from .trainable_layers import TrainableLayers


@dataclass(frozen=True)
class Asked:
    """What is asked along one rollout.

    phrases: yields the phrases to predict with, for one sampled step after the other. sampled: the steps that samples
    will be taken at. acting: those in which the slider acts. guidance: the scale of classifier-free guidance.
    """

    concept: Concept
    phrases: Iterator[list[int]]
    sampled: set[int]
    acting: range
    guidance: float


class RolloutPredictions:
    """The guided prediction along a rollout, which keeps the frozen model's predictions on the way.

    strengths: (B,), of the slider. twins: behind the B latents of a rollout come B more, of the same noise without
    the slider, by which `objectives.preserved_target` holds on to what the phrases name.

    All predictions at a sigma are asked for together: those of the target and the empty prompt, with the slider on;
    and without it, where a sample will be taken, those of the target, unless guidance has the same prediction, and of
    both ends. With twins the ends are asked for on their own, as twins have no need of them.
    """

    def __init__(
        self, denoiser: DiffusionPredictor, layers: TrainableLayers, asked: Asked, strengths: Tensor, twins: bool
    ):
        self.denoiser, self.layers, self.asked, self.twins = denoiser, layers, asked, twins
        self._bare = not strengths.any()
        self._strengths = torch.cat([strengths, torch.zeros_like(strengths)]) if twins else strengths
        self._size = len(strengths)
        self.d_target: list[Tensor] = []
        self.d_change: list[Tensor] = []
        self._turns: list[list[int]] = []  # the phrases predicted with, for each sampled step

    def answers(self, x: Tensor, sigmas: Tensor) -> Answers:
        """Compare what the model has answered to both ends, and what it answers when it is asked again.

        It is asked again where the difference may be rounding: at the sigma with the largest, prompt by prompt, as
        rounding depends on what else is in a batch. x: (steps, B, C, ...). sigmas: (steps + 1,).
        """
        steps = sorted(self.asked.sampled)
        change = torch.stack([self.d_change[step] for step in steps])
        target = torch.stack([self.d_target[step] for step in steps])
        apart = relative_size(change, target)
        if not NOTHING < apart < ABOVE_ROUNDING * torch.finfo(self.denoiser.dtype).eps:
            return Answers(apart)
        largest = int(change.flatten(1).norm(dim=1).argmax())
        ends = [self.asked.concept.ends()[phrase] for phrase in self._turns[largest]]
        place = x[steps[largest]], sigmas[steps[largest]]
        more, less = (
            torch.cat([self.denoiser.predict(*place, [prompt]) for prompt in prompts])
            for prompts in zip(*ends, strict=True)
        )
        return Answers(apart, share_again(change[largest], textual_change(more, less)))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), guided; of twice as many with twins."""
        step, target = len(self.d_target), self.asked.concept.target
        guiding = [target, ""] if self.asked.guidance != 1 and target else [target]
        targets, ends = self._frozen_prompts() if step in self.asked.sampled else ([], [])
        together = [] if self.twins else ends
        prompts = [*guiding, *targets, *together]
        strengths = torch.zeros(len(prompts), len(x), 1, device=x.device)
        if step in self.asked.acting:
            strengths[: len(guiding)] = self._strengths[:, None]
        d = self.denoiser.predict(x, sigma, prompts, self.layers, strengths)
        d_guiding, d_targets, d_ends = d.split([len(guiding), len(targets), len(together)])
        if self.twins and ends:
            d_ends = self.denoiser.predict(x[: self._size], sigma, ends)
        self._keep(d_guiding[0], d_targets, d_ends)
        return classifier_free(d_guiding[0], d_guiding[1], self.asked.guidance) if len(guiding) > 1 else d_guiding[0]

    def _frozen_prompts(self) -> tuple[list[str], list[str]]:
        """Return the prompts to predict without the slider, with the phrases whose turn it is: targets, and ends.

        All of *more* come before all of *less*.
        """
        concept, turn = self.asked.concept, next(self.asked.phrases)
        self._turns.append(turn)
        more, less = zip(*(concept.ends()[phrase] for phrase in turn), strict=True)
        if self.twins:
            return [concept.targets()[phrase] for phrase in turn], [*more, *less]
        return [] if self._bare else [concept.target], [*more, *less]

    def _keep(self, d_guiding: Tensor, d_targets: Tensor, d_ends: Tensor) -> None:
        """Keep the two terms of the target at this sigma; zeros where no sample will be taken."""
        if not len(d_ends):
            self.d_target.append(torch.zeros_like(d_guiding[: self._size]))
            self.d_change.append(torch.zeros_like(d_guiding[: self._size]))
            return
        self.d_change.append(textual_change(*d_ends.chunk(2)))
        if self.twins:
            changed, twin = d_targets.split(self._size, dim=1)
            self.d_target.append(preserved_target(changed, twin, d_guiding[self._size :]))
        else:
            self.d_target.append(d_targets[0] if len(d_targets) else d_guiding)
