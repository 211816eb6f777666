"""Visual sliders on every family of models ComfyUI builds."""

import pytest
import torch
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import traces
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import VISUAL_METHODS, TextualRecipe, VisualRecipe
from concept_sliders.training.run import train_textual, train_visual
from concept_sliders.training.visual_samples import LatentSet

NEEDS_SOUND = ("MiniMax H3",)


def pair_for(family):
    """Two images as the family's latents, those of a video without its sound."""
    latents = torch.randn(2, *FAMILIES[family].latent, generator=torch.Generator().manual_seed(5))
    return LatentSet(latents, (-1.0, 1.0), "a person")


def trained(family, model, method):
    recipe = VisualRecipe(method=method, steps=2, rank=1, layers="all", learning_rate=1e-3)
    with torch.inference_mode():
        conditionings = {"a person": FAMILIES[family].conditioning(1)}
        return train_visual(model, conditionings, recipe, [pair_for(family)], "pair")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NEEDS_SOUND])
def test_it_trains_in_place(family):
    with torch.inference_mode():
        model = FAMILIES[family].build()
    before = {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.model.state_dict().items()}
    for method in VISUAL_METHODS:
        run = trained(family, model, method)
        assert run.progress.steps == 2 and torch.isfinite(torch.tensor(run.progress.losses)).all()
        seen = [layer for name, layer in run.slider.layers.items() if "audio" not in name]  # no sound is given
        assert sum(bool(layer.up.any()) for layer in seen) > len(seen) / 2, method
    for key, tensor in model.model.state_dict().items():
        assert tensor.data_ptr() == before[key][0] and torch.equal(tensor, before[key][1]), key
    assert traces(model) == []


@pytest.mark.parametrize("family", NEEDS_SOUND)
def test_a_model_that_needs_sound_says_so(family):
    with torch.inference_mode():
        model, f = FAMILIES[family].build(), FAMILIES[family]
    with pytest.raises(ValueError, match=r"videos together with their sound.* got images alone"):
        trained(family, model, "noise")
    recipe = TextualRecipe(concepts=(Concept("a person", "an old person", "a young person", eta=4.0),), steps=1)
    conditionings = {prompt: f.conditioning(seed) for seed, prompt in enumerate(recipe.prompts())}
    with pytest.raises(ValueError, match="got images alone"):
        train_textual(model, conditionings, recipe, torch.zeros(1, *f.latent), "words")
