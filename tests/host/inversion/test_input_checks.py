"""What cannot be inverted, and what is said of it."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.inverting import by_sampler_custom, quick_settings
from concept_sliders.tests.support.tiny import difference, random_slider

pytestmark = pytest.mark.usefixtures("untouched")


def spoiled(latents, at, value):
    latents = latents.clone()
    latents.view(-1)[at] = value
    return latents


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 8, 16, 16), "latent is empty. Wire in an image"),
        (torch.ones(1, 4, 8, 8), r"takes latents of 8 channels in 4 dimensions; got the shape \(1, 4, 8, 8\)"),
        (torch.ones(8, 16, 16), "in 4 dimensions; got the shape"),
        (spoiled(torch.ones(1, 8, 16, 16), 7, float("nan")), "latent holds numbers that are not finite"),
    ],
)
def test_latents_that_are_no_image_of_the_model_are_refused(pocket, images, latents, message):
    with pytest.raises(ValueError, match=message):
        invert(pocket[0], latents, images.positive, images.negative, quick_settings())


def test_a_size_that_the_model_cannot_take_is_named(pocket, images):
    with pytest.raises(ValueError, match=r"cannot take latents of the shape \(1, 8, 0, 16\)"):
        invert(pocket[0], torch.ones(1, 8, 0, 16), images.positive, images.negative, quick_settings())


def test_prompts_that_do_not_fit_the_images_are_refused(pocket, images):
    three = images.encoded("a man", "a woman", "a person")
    for prompts in ((three, images.negative), (images.positive, three)):
        with pytest.raises(ValueError, match="has 3 prompts for 2 images"):
            invert(pocket[0], images.latents, *prompts, quick_settings())


def test_numbers_that_are_not_finite_on_the_way_are_named(pocket, images):
    broken = [[encoding * 1e30, {**options}] for encoding, options in images.positive]
    with torch.inference_mode(), pytest.raises(FloatingPointError, match=r"at sigma .* not finite"):
        invert(pocket[0], images.latents, broken, images.negative, quick_settings())


@pytest.mark.parametrize("prompt", ["positive", "negative"])
def test_so_are_they_beside_the_words_of_a_prompt(pocket, images, prompt):
    prompts = {name: getattr(images, name) for name in ("positive", "negative")}
    ((encoding, options),) = prompts[prompt]
    spoilt = {**options, "pooled_output": spoiled(options["pooled_output"], 3, float("inf"))}
    prompts[prompt] = [[encoding, spoilt]]
    with pytest.raises(ValueError, match=f"pooled_output of {prompt} holds numbers that are not finite"):
        invert(pocket[0], images.latents, *prompts.values(), quick_settings(method="plain"))


def test_a_model_with_sliders_on_it_is_refused(pocket, images):
    acted = apply_sliders(pocket[0], Stack.of(random_slider(pocket[0])))
    with pytest.raises(ValueError, match=r"the model has sliders on it.*before Apply Sliders"):
        invert(acted, images.latents, images.positive, images.negative, quick_settings())


def test_patches_of_guidance_are_refused(pocket, images):
    patched = pocket[0].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    with pytest.raises(ValueError, match=r"guidance is patched .sampler_post_cfg_function"):
        invert(patched, images.latents, images.positive, images.negative, quick_settings())


def test_a_guidance_distilled_model_is_told_what_works_and_does():
    family = FAMILIES["Flux"]
    with torch.inference_mode():
        model = family.build()
        latents = torch.randn(1, *family.latent, generator=torch.Generator().manual_seed(9))
        prompts = family.conditioning(2), family.conditioning(3)
        for method in ("null-text", "negative prompt"):
            with pytest.raises(ValueError, match=r"Flux has guidance distilled into it.*Choose the method 'plain'"):
                invert(model, latents, *prompts, quick_settings(method=method))
        made = invert(model, latents, *prompts, quick_settings(method="plain", cfg=1.0, steps=8, refinement=4))
    again = by_sampler_custom(model, made, prompts[0], cfg=1.0)
    assert difference(*(model.model.process_latent_in(latent) for latent in (again, latents))) == pytest.approx(
        float(made.error), abs=2e-4
    )
