"""The published training schedule, for comparison: what the public trainers ask of the model in each iteration.

Textual (Concept Sliders' code): a fresh trajectory in every iteration, with the slider on, over 50 steps up to a
random one, guided away from the less prompt; one preserved phrase at a time, in all prompts, the slider's own among
them; every prediction in a doubled batch for guidance, at a guidance of 1. Otherwise than there, both signs are
trained where the recipe says so, and the model is told the latent's own level (docs/published.md).
Visual: each of the two images encoded by the VAE anew; for each a doubled prediction of the frozen model that nothing
uses, then one with gradients and its own backward pass; and the garbage collected.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.training.loop import Training
from concept_sliders.training.trainable_layers import TrainableLayers
from concept_sliders.training.objectives import prediction_loss, textual_change, textual_target
from concept_sliders.training.samples import Sample, SampleSource
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.comfy_host.predictor import classifier_free
from torch import Tensor

STEPS = 50  # of a trajectory
GUIDANCE = 3.0


class PublishedSamples(SampleSource):
    """One sample a trajectory. doubled: ask in doubled batches as well, half of which is thrown away."""

    def __init__(
        self,
        denoiser: Denoiser,
        layers: TrainableLayers,
        recipe: TextualRecipe,
        shape: tuple[int, ...],
        generator: torch.Generator,
        doubled: bool = False,
    ):
        self.denoiser, self.layers, self.recipe = denoiser, layers, recipe
        self.shape, self.generator, self.doubled = shape, generator, doubled
        self.steps: int | None = None  # of every trajectory, instead of a random number

    @torch.no_grad()
    def __next__(self) -> Sample:
        (concept,), generator = self.recipe.concepts, self.generator
        sign = 1.0
        if self.recipe.both_signs:
            sign -= 2.0 * int(torch.randint(0, 2, (), generator=generator))
        strengths = torch.full((self.shape[0], 1), sign, device=self.denoiser.device)
        steps = self.steps or int(torch.randint(1, STEPS, (), generator=generator))
        phrase = int(torch.randint(0, len(concept.phrases), (), generator=generator))
        prompt, (more, less) = concept.targets()[phrase], concept.ends()[phrase]
        sigmas = self.denoiser.sigmas(STEPS)
        noise = torch.randn(self.shape, generator=generator).to(self.denoiser.device)
        x = self.denoiser.scale_noise(sigmas[0], noise)
        for sigma, following in zip(sigmas[:steps], sigmas[1 : steps + 1]):
            with self.layers.acting(strengths.repeat(2, 1)):
                d_prompt, d_negative = self.denoiser(x, sigma, [prompt, less])
            x = x + (following - sigma) * classifier_free(d_prompt, d_negative, GUIDANCE)
        d_target, d_more, d_less = (self._asked(x, sigmas[steps], each, less) for each in (prompt, more, less))
        change = textual_change(d_more[None], d_less[None])
        target = textual_target(d_target, change, concept.signed_eta * sign)
        return Sample(x, sigmas[steps], target, strengths, prompt)

    def _asked(self, x: Tensor, sigma: Tensor, prompt: str, negative: str) -> Tensor:
        return self.denoiser(x, sigma, [prompt, negative] if self.doubled else [prompt])[0]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class PublishedTraining(Training):
    """Trains in doubled batches, too."""

    def _backward_part(self, sample: Sample, entries: Tensor) -> float:  # type: ignore[override]
        with self.layers.acting(sample.strengths.repeat(2, 1)):
            d_prompt, d_empty = self.predictor(sample.x, sample.sigma, [sample.prompt, ""])
            loss = prediction_loss(classifier_free(d_prompt, d_empty, 1.0), sample.target)
            loss.backward()
        return loss.item()


class PublishedVisualTraining(Training):
    """Image by image, in doubled batches, with predictions that nothing uses.

    encode: what the VAE does to one image. clock: seconds, for `spent`: what has gone into the parts of an
    iteration that training could do without.
    """

    encode: Callable[[], object]
    clock: Callable[[], float]

    def _backward_part(self, sample: Sample, entries: Tensor) -> float:  # type: ignore[override]
        total, prompts = 0.0, [sample.prompt, sample.prompt]
        for row in range(len(sample.x)):
            with self._spending("encoding"):
                self.encode()
            x, strengths = sample.x[row : row + 1], sample.strengths[row : row + 1]
            with self._spending("unused predictions"), torch.no_grad():
                self.predictor(x, sample.sigma, prompts)
            with self.layers.acting(strengths.repeat(2, 1)):
                d_prompt, d_empty = self.predictor(x, sample.sigma, prompts)
                d = classifier_free(d_prompt, d_empty, 1.0)
                loss = prediction_loss(d, sample.target[row : row + 1])
                loss.backward()
            total += loss.item()
        with self._spending("garbage"):
            torch.cuda.empty_cache()
            gc.collect()
        return total

    @contextmanager
    def _spending(self, part: str) -> Iterator[None]:
        began = self.clock()
        yield
        self.spent[part] = self.spent.get(part, 0.0) + self.clock() - began

    @cached_property
    def spent(self) -> dict[str, float]:
        """Seconds by part, over all iterations so far."""
        return {}
