"""What is asked of every family's training from words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.latents import packed
from concept_sliders.tests.support.tiny import difference
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import train_textual

if TYPE_CHECKING:
    from concept_sliders.tests.support.family_checks import Subject

EARLY_OUT = "all but early layers"
CLOSE = 1e-4  # relative, of predictions in float32
APART = 1e-5  # of those at both ends of a concept: LTX 2 with random weights hardly hears its prompts
CONCEPT = Concept("a person", "an old person", "a young person", eta=4.0)
RECIPE = TextualRecipe(
    concepts=(CONCEPT,), rank=2, steps=2, learning_rate=1e-3, layers="all", rollout_steps=2, samples_per_rollout=2
)


def asked_in_batches(subject: Subject, conditionings: Mapping[str, list], prompts: Sequence[str]) -> None:
    x, shapes = packed(subject.family.noise(2))
    denoiser = Denoiser(
        subject.model, {prompt: for_autograd(given) for prompt, given in conditionings.items()}, shapes
    )
    sigma = denoiser.sigmas(4)[1]
    x = denoiser.scale_noise(sigma, x)
    together = denoiser.predict(x, sigma, prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        assert difference(answer, denoiser.predict(x, sigma, [prompt])[0]) < CLOSE, prompt
    more, less = (together[prompts.index(prompt)] for prompt in (CONCEPT.more, CONCEPT.less))
    assert difference(more, less) > APART


def trains(subject: Subject) -> str:
    """Two steps in place, on prompts of different lengths: what is asked in a batch is what it is one by one, and
    tells the ends of the concept apart; a finite loss, a slider that is no longer nothing, a model that is as before.
    """
    prompts = (*CONCEPT.prompts(), "")
    conditionings = {prompt: subject.family.conditioning(seed, 2 * seed) for seed, prompt in enumerate(prompts)}
    with torch.inference_mode():
        with borrowed(subject.model):
            asked_in_batches(subject, conditionings, prompts)
        trained = train_textual(subject.model, conditionings, RECIPE, subject.family.empty(2), "trained")
    assert trained.progress.steps == RECIPE.steps
    assert all(torch.isfinite(torch.tensor(trained.progress.losses)))
    learned = sum(bool(layer.up.any()) for layer in trained.slider.layers.values())
    assert learned > len(trained.slider.layers) / 2
    assert trained.slider.layers.keys() == subject.in_sampling.layers.keys()
    subject.assert_untouched()
    return "yes" if subject.in_sampling is subject.slider else EARLY_OUT
