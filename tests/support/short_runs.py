"""Short trainings of the pocket model, all alike but for what a test changes."""

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from concept_sliders.sliders.slider import Slider
from concept_sliders.training import run as training_run
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import Trained, TrainingData
from concept_sliders.training.textual_samples import TextualSamples

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)
LATENTS = torch.zeros(1, 8, 8, 8)


def train_on(model: ModelPatcher, clip: CLIP) -> Callable[..., Trained | None]:
    """run(run_options, steps, latents, samples, **settings of the recipe)."""
    with torch.inference_mode():
        prompts = (*CONCEPT.prompts(), "")
        conditionings = {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts}

    def run(run_options=None, steps=8, latents=LATENTS, samples=TextualSamples, **settings):
        settings = {"rollout_steps": 3, "samples_per_rollout": 5, "learning_rate": 2e-3, **settings}
        recipe = TextualRecipe(concepts=(CONCEPT,), steps=steps, **settings)
        with torch.inference_mode():
            return training_run.train(
                model,
                conditionings,
                recipe,
                TrainingData(latents, CONCEPT.target),
                "age",
                lambda denoiser, layers, random: samples(denoiser, layers, recipe, tuple(latents.shape), random),
                run_options,
            )

    return run


def same(one: Slider, other: Slider) -> bool:
    """Returns True if two sliders are the same to the bit."""
    return all(
        torch.equal(one.layers[name].down, layer.down) and torch.equal(one.layers[name].up, layer.up)
        for name, layer in other.layers.items()
    )
