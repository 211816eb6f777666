"""Sampling runs that are not the inversion's are refused: other steps, samplers, guidance, models and latents."""

from dataclasses import replace
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, KSamplerSelect, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_perpneg import PerpNegGuider
from concept_sliders.comfy_host.identity import weights_hash
from concept_sliders.inversion.conditioning import negative_conditioning
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.inverting import (
    by_sampler_custom,
    errors,
    inverted,
    ksampled,
    quick_settings,
    refused,
)


def test_another_schedule_is_refused(pocket, images, inversion):
    model, positive = pocket[0], images.positive
    message = "valid for 4 steps of the scheduler 'simple', sigmas 20 to 0; the sampler runs"
    refused(f"{message} 7 steps", ksampled, model, inversion, positive, steps=7)
    refused(f"{message} 4 steps", ksampled, model, inversion, positive, scheduler="karras")
    refused(f"{message} 4 steps", ksampled, model, inversion, positive, denoise=0.7)
    refused(f"{message} 3 steps", ksampled, model, inversion, positive, last_step=3, force_full_denoise=True)
    refused(f"{message} 2 steps", by_sampler_custom, model, inversion, positive, sigmas=inversion.sigmas[::2])


@pytest.fixture(scope="module")
def flow():
    """A flow model, whose schedule can be shifted, and what is inverted of it."""
    family = FAMILIES["SD3"]
    latents = torch.randn(2, *family.latent, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        prompts = {"positive": family.conditioning(2), "negative": family.conditioning(3)}
        return family.build(), SimpleNamespace(latents=latents, **prompts)


def test_another_shift_of_the_schedule_is_refused(flow):
    model, images = flow
    made = inverted(model, images, inner_steps=1)
    refused("the sampler runs 4 steps", ksampled, shifted(model), made, images.positive)


def shifted(model):
    """A clone of the model, as a ModelSampling node gives it out."""
    return ModelSamplingSD3().patch(model, shift=12.0)[0]


def load(model):
    comfy.model_management.load_models_gpu([model])


def test_the_same_sigmas_under_another_shift_are_refused(flow):
    """There ComfyUI would have other embeddings active. Whatever was loaded before."""
    model, images = flow
    other, made = shifted(model), inverted(model, images, inner_steps=1)
    for loaded in (model, other):
        load(loaded)
        message = "The model's sampling is not the one .* At step 2 of 4 other embeddings"
        refused(message, by_sampler_custom, other, made, images.positive)
    assert torch.isfinite(by_sampler_custom(model, made, images.positive)).all()


def test_an_inversion_of_a_model_with_another_shift_is_that_models(flow):
    model, images = flow
    other = shifted(model)
    made = inverted(other, images, inner_steps=1, refinement=0)
    bare = inverted(model, images, inner_steps=1, refinement=0)
    assert made.weights_hash == bare.weights_hash  # the weights are the same
    for loaded in (model, other):
        load(loaded)
        again = by_sampler_custom(other, made, images.positive)
        torch.testing.assert_close(errors(again, images), made.error, rtol=1e-2, atol=1e-3)
    refused("The model's sampling is not the one", by_sampler_custom, model, made, images.positive)


def test_another_prediction_at_the_same_sigmas_is_refused():
    """As it is when a v-prediction checkpoint was inverted, and is sampled without the node that says so."""
    family = FAMILIES["SD 1"]
    with torch.inference_mode():
        model, latents = family.build(), torch.randn(1, *family.latent)
        prompts = family.conditioning(2), family.conditioning(3)
        made = invert(model, latents, *prompts, quick_settings(method="negative prompt"))
    assert made.prediction == "EPS"
    (other,) = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=False)
    message = "a model that predicts EPS; the sampler's is taken to predict V_PREDICTION"
    refused(message, sampled, other, made, prompts)
    assert torch.isfinite(sampled(model, made, prompts)).all()


def sampled(model, made, prompts):
    return by_sampler_custom(model, made, prompts[0])


def test_one_embedding_for_all_steps_holds_at_any_shift(flow):
    model, images = flow
    made = inverted(model, images, method="negative prompt")
    plain, other = (by_sampler_custom(m, made, images.positive) for m in (model, shifted(model)))
    torch.testing.assert_close(other, plain)


def test_the_hash_of_a_model_is_of_its_weights_alone(pocket):
    model = pocket[0].clone()
    other = ModelSamplingDiscrete().patch(model, "eps", zsnr=False)[0]
    seen = []
    for loaded in (model, other, model):
        load(loaded)
        seen += [weights_hash(model), weights_hash(other)]
    assert len(set(seen)) == 1
    other = load_pocket()[0]
    with torch.inference_mode():
        next(other.model.diffusion_model.parameters()).add_(1.0)
    assert weights_hash(other) != seen[0]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "uni_pc"])
def test_another_sampler_is_refused(pocket, images, inversion, sampler):
    message = f"by the sampler euler alone .* got {'uni' if sampler == 'uni_pc' else sampler}"
    refused(message, by_sampler_custom, pocket[0], inversion, images.positive, sampler=sampler)


def test_another_guidance_is_refused_for_fitted_embeddings(pocket, images, inversion):
    refused("fitted to a cfg of 3; the sampler's is 7.5", ksampled, pocket[0], inversion, images.positive, cfg=7.5)
    refused("fitted to a cfg of 3; the sampler's is 1", ksampled, pocket[0], inversion, images.positive, cfg=1.0)


def test_guidance_of_another_kind_is_refused_for_fitted_embeddings(pocket, images, inversion):
    rescaled = RescaleCFG().patch(pocket[0], 0.7)[0]
    refused(r"another \(sampler_cfg_function\)", by_sampler_custom, rescaled, inversion, images.positive)
    negative = negative_conditioning(inversion)
    guider = PerpNegGuider.execute(pocket[0], images.positive, negative, images.negative, 3.0, 1.0).result[0]
    euler, noise = KSamplerSelect.execute("euler").result[0], DisableNoise.execute().result[0]
    latent = {"samples": inversion.noise}
    with torch.inference_mode():
        refused(
            "another .Guider_PerpNeg", SamplerCustomAdvanced.execute, noise, guider, euler, inversion.sigmas, latent
        )
    plain = CFGGuider.execute(pocket[0], images.positive, negative, 3.0).result[0]
    with torch.inference_mode():
        made = SamplerCustomAdvanced.execute(noise, plain, euler, inversion.sigmas, latent).result[0]["samples"]
    torch.testing.assert_close(made, by_sampler_custom(pocket[0], inversion, images.positive))


def test_another_model_is_refused(pocket, images, inversion):
    other = replace(inversion, weights_hash="0" * 16, family="SDXL")
    message = "made with another model: of the family SDXL, weights 0000"
    refused(message, ksampled, pocket[0], other, images.positive)


def test_so_is_one_of_the_same_kind_with_other_weights(pocket, images, inversion):
    retrained = load_pocket()[0]
    with torch.inference_mode():
        next(retrained.model.diffusion_model.parameters()).mul_(1.01)
    refused("made with another model: of the family Pocket", ksampled, retrained, inversion, images.positive)


def test_another_latent_is_refused(pocket, images, inversion):
    for latent in (torch.zeros(2, 8, 16, 16), images.latents, torch.randn(1, 8, 16, 8)):
        refused(
            "is not the noise of this inversion",
            by_sampler_custom,
            pocket[0],
            inversion,
            images.positive,
            latent={"samples": latent},
        )


def test_in_the_middle_of_sampling_batch_entries_cannot_be_told(pocket, images, inversion):
    latent = {"samples": torch.randn(4, 8, 16, 16)}
    refused(
        "of 2 images, and the latent in the middle of sampling has 4 entries",
        by_sampler_custom,
        pocket[0],
        inversion,
        images.positive,
        sigmas=inversion.sigmas[2:],
        latent=latent,
    )
