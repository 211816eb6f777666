"""Training on videos with sound: packed latents, of which previews and the early stop see the images alone."""

import pytest
import torch
from concept_sliders.comfy_host.latents import packed
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.family_training import CONCEPT, RECIPE
from concept_sliders.training.run import RunOptions, train_textual


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return Subject("LTX 2", tmp_path_factory.mktemp("packed"))


def trained(subject, latents, run_options=None):
    prompts = (*CONCEPT.prompts(), "")
    conditionings = {prompt: subject.family.conditioning(seed) for seed, prompt in enumerate(prompts)}
    with torch.inference_mode():
        return train_textual(subject.model, conditionings, RECIPE, latents, "trained", run_options)


def test_previews_and_the_early_stop_see_the_images(subject):
    seen = []
    run_options = RunOptions(progress=lambda _, latents: seen.append(latents), preview_every=1)
    slider = trained(subject, subject.family.empty(2), run_options).slider
    previews = [latents for latents in seen if latents is not None]
    assert previews and all(latents.shape == (3, *subject.family.latent) for latents in previews)
    assert slider.info.recipe["latent_shape"] == list(subject.family.latent) and slider.info.recipe["batch"] == 2
    assert any(layer.up.any() for name, layer in slider.layers.items() if "audio" in name)


def test_videos_without_sound_train_too(subject):
    slider = trained(subject, torch.zeros(2, *subject.family.latent)).slider
    learned = {name for name, layer in slider.layers.items() if layer.up.any()}
    assert learned and not any("transformer_blocks" in name and "audio_ff" in name for name in learned)


def test_ordinary_latents_are_left_as_they_are():
    latents = torch.zeros(2, 4, 8, 8)
    assert packed(latents)[0] is latents and packed(latents)[1] is None
