"""Sampling with an inversion's conditioning: what is active when, and runs that are not the inversion's."""

from dataclasses import replace

import comfy.hooks
import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from concept_sliders.inversion.carrying import InversionHook, inversion_in, negative_conditioning
from concept_sliders.inversion.checks import own_fingerprint
from concept_sliders.nodes.composing import SweepSliders
from concept_sliders.sliders.runtime import apply_sliders
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.host.inverting import STEPS, by_sampler_custom, inverted, ksampled
from concept_sliders.tests.host.tiny import difference, random_slider
from concept_sliders.training.in_place import fingerprint

import nodes

POSITIVE, NEGATIVE = 0, 1


def watched(model):
    """(a clone of the model, what each of its evaluations was asked: (sigma, branches, encodings))."""
    seen, clone = [], model.clone()

    def look(apply_model, args):
        c = args["c"]
        seen.append((float(args["timestep"][0]), list(args["cond_or_uncond"]), c["c_crossattn"].clone()))
        return apply_model(args["input"], args["timestep"], **c)

    clone.set_model_unet_function_wrapper(look)
    return clone, seen


@pytest.mark.parametrize("sample", [by_sampler_custom, ksampled])
def test_each_embedding_is_active_at_its_own_step_and_shares_the_prompts_batch(pocket, pictures, inversion, sample):
    model, seen = watched(pocket[0])
    sample(model, inversion, pictures.positive)
    assert len(seen) == STEPS  # one evaluation a step: guidance's two prompts in one batch
    for step, (sigma, branches, encodings) in enumerate(seen):
        assert sigma == pytest.approx(float(inversion.sigmas[step]))
        assert sorted(branches) == [POSITIVE, NEGATIVE]
        negative = encodings.chunk(2)[branches.index(NEGATIVE)]
        assert torch.equal(negative, inversion.embeddings[step])


@pytest.mark.parametrize("scheduler", ["normal", "karras", "beta", "ddim_uniform", "sgm_uniform"])
def test_the_windows_hold_for_other_schedules(pocket, pictures, scheduler):
    made = inverted(pocket[0], pictures, scheduler=scheduler, inner_steps=1, refinement=0, steps=3)
    model, seen = watched(pocket[0])
    ksampled(model, made, pictures.positive)
    for step, (_, branches, encodings) in enumerate(seen):
        assert torch.equal(encodings.chunk(2)[branches.index(NEGATIVE)], made.embeddings[step])
    assert len(seen) == 3


def test_noise_that_the_sampler_adds_does_not_count(pocket, pictures, inversion):
    without = by_sampler_custom(pocket[0], inversion, pictures.positive)
    assert torch.equal(by_sampler_custom(pocket[0], inversion, pictures.positive, noise=True), without)
    torch.testing.assert_close(ksampled(pocket[0], inversion, pictures.positive), without, rtol=1e-4, atol=1e-4)


def test_ddim_is_euler(pocket, pictures, inversion):
    one, other = (by_sampler_custom(pocket[0], inversion, pictures.positive, sampler=s) for s in ("euler", "ddim"))
    assert torch.equal(one, other)


def test_in_two_parts_it_is_the_same(pocket, pictures, inversion):
    whole = by_sampler_custom(pocket[0], inversion, pictures.positive)
    half = by_sampler_custom(pocket[0], inversion, pictures.positive, sigmas=inversion.sigmas[:3])
    rest = by_sampler_custom(
        pocket[0], inversion, pictures.positive, sigmas=inversion.sigmas[2:], latent={"samples": half}
    )
    # the host puts a flow model's latent into another scale between the two
    torch.testing.assert_close(rest, whole, rtol=1e-3, atol=1e-3)


def refused(message, sample, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        sample(*args, **kwargs)


def test_another_schedule_is_refused(pocket, pictures, inversion):
    model, positive = pocket[0], pictures.positive
    message = "holds for 4 steps of the scheduler 'simple', noise levels 1 to 0; the sampler runs"
    refused(f"{message} 7 steps", ksampled, model, inversion, positive, steps=7)
    refused(f"{message} 4 steps", ksampled, model, inversion, positive, scheduler="karras")
    refused(f"{message} 4 steps", ksampled, model, inversion, positive, denoise=0.7)
    refused(f"{message} 3 steps", ksampled, model, inversion, positive, last_step=3, force_full_denoise=True)
    refused(f"{message} 2 steps", by_sampler_custom, model, inversion, positive, sigmas=inversion.sigmas[::2])


def test_another_shift_of_the_schedule_is_refused(pocket, pictures, inversion):
    refused("the sampler runs 4 steps", ksampled, shifted(pocket[0]), inversion, pictures.positive)


def shifted(model):
    """A clone of the model, as a ModelSampling node gives it out."""
    return ModelSamplingSD3().patch(model, shift=5.0)[0]


def load(model):
    comfy.model_management.load_models_gpu([model])


def test_the_same_noise_levels_under_another_shift_are_refused(pocket, pictures, inversion):
    """There the host would have other embeddings active. Whatever was loaded before."""
    other = shifted(pocket[0])
    for loaded in (pocket[0], other):
        load(loaded)
        message = "The model's sampling is not the one .* At step 2 of 4 other embeddings"
        refused(message, by_sampler_custom, other, inversion, pictures.positive)
    assert torch.isfinite(by_sampler_custom(pocket[0], inversion, pictures.positive)).all()


def test_an_inversion_of_a_model_with_another_shift_is_that_models(pocket, pictures):
    other = shifted(pocket[0])
    made = inverted(other, pictures, inner_steps=1, refinement=0)
    bare = inverted(pocket[0], pictures, inner_steps=1, refinement=0)
    assert made.fingerprint == bare.fingerprint  # the weights are the same
    for loaded in (pocket[0], other):
        load(loaded)
        again = by_sampler_custom(other, made, pictures.positive)
        sizes = pictures.latents.flatten(1).norm(dim=1)
        errors = (again - pictures.latents).flatten(1).norm(dim=1) / sizes
        torch.testing.assert_close(errors, made.error, rtol=1e-2, atol=1e-3)
    refused("The model's sampling is not the one", by_sampler_custom, pocket[0], made, pictures.positive)


def test_one_embedding_for_all_steps_holds_at_any_shift(pocket, pictures):
    made = inverted(pocket[0], pictures, method="negative prompt")
    plain, other = (by_sampler_custom(m, made, pictures.positive) for m in (pocket[0], shifted(pocket[0])))
    torch.testing.assert_close(other, plain)


def test_the_hash_of_a_model_is_of_its_weights_alone(pocket):
    model = pocket[0].clone()
    other = shifted(model)
    seen = []
    for loaded in (model, other, model):
        load(loaded)
        seen += [fingerprint(model.model), own_fingerprint(model), own_fingerprint(other)]
    assert len(set(seen)) == 1
    (name, weight), *_ = model.model.diffusion_model.named_parameters()
    assert fingerprint(model.model, {f"diffusion_model.{name}": weight + 1}) != seen[0]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "uni_pc"])
def test_another_sampler_is_refused(pocket, pictures, inversion, sampler):
    message = f"by the sampler euler alone .* got {'uni' if sampler == 'uni_pc' else sampler}"
    refused(message, by_sampler_custom, pocket[0], inversion, pictures.positive, sampler=sampler)


def test_another_guidance_is_refused_for_fitted_embeddings(pocket, pictures, inversion):
    refused("fitted to a cfg of 3; the sampler's is 7.5", ksampled, pocket[0], inversion, pictures.positive, cfg=7.5)
    refused("fitted to a cfg of 3; the sampler's is 1", ksampled, pocket[0], inversion, pictures.positive, cfg=1.0)


def test_another_model_is_refused(pocket, pictures, inversion):
    other = replace(inversion, fingerprint="0" * 16, family="SDXL")
    message = "made with another model: of the family SDXL, weights 0000"
    refused(message, ksampled, pocket[0], other, pictures.positive)


def test_another_latent_is_refused(pocket, pictures, inversion):
    for latent in (torch.zeros(2, 24, 16, 16), pictures.latents, torch.randn(1, 24, 16, 8)):
        refused(
            "is not the noise of this inversion",
            by_sampler_custom,
            pocket[0],
            inversion,
            pictures.positive,
            latent={"samples": latent},
        )


def test_it_is_the_model_without_its_patches_that_counts(pocket, pictures, inversion):
    """A stock LoRA on the model is an edit, whether its patches are on the weights at the moment or not."""
    patched = pocket[0].clone()
    name = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = patched.model.get_parameter(name)
    patched.add_patches({name: ("diff", (0.2 * torch.randn_like(weight),))})
    bare = by_sampler_custom(pocket[0], inversion, pictures.positive)
    for _ in range(2):
        assert difference(by_sampler_custom(patched, inversion, pictures.positive), bare) > 1e-3
    assert torch.equal(by_sampler_custom(pocket[0], inversion, pictures.positive), bare)


def test_sliders_act_on_it_and_every_row_of_a_sweep_keeps_its_picture(pocket, pictures, inversion):
    stack, latent = SweepSliders.execute(
        Stack.of(random_slider(pocket[0], size=0.1)), {"samples": inversion.noise}, "0, 1", 1
    ).result
    swept = by_sampler_custom(apply_sliders(pocket[0], stack), inversion, pictures.positive, latent=latent)
    bare = by_sampler_custom(pocket[0], inversion, pictures.positive)
    torch.testing.assert_close(swept[::2], bare, rtol=1e-3, atol=1e-3)  # at strength 0
    for picture in range(2):
        alone = by_sampler_custom(
            apply_sliders(pocket[0], Stack.of(stack[0].slider)),
            inversion,
            pictures.positive,
            latent={"samples": inversion.noise[picture : picture + 1]},
        )
        assert difference(swept[2 * picture + 1 : 2 * picture + 2], alone) < 1e-3
        assert difference(alone, bare[picture : picture + 1]) > 1e-2


def test_in_the_middle_of_sampling_rows_cannot_be_told(pocket, pictures, inversion):
    latent = {"samples": torch.randn(4, 24, 16, 16)}
    refused(
        "of 2 pictures, and the latent in the middle of sampling has 4 rows",
        by_sampler_custom,
        pocket[0],
        inversion,
        pictures.positive,
        sigmas=inversion.sigmas[2:],
        latent=latent,
    )


def test_outside_a_mask_the_picture_stays_as_it_was(pocket, pictures, inversion):
    """With a slider that changes everything, and with either way of adding noise."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    acted = apply_sliders(pocket[0], Stack.of(random_slider(pocket[0], size=0.1)))
    for sampler, noise in (("euler", False), ("ddim", True)):
        latent = {"samples": inversion.noise, "noise_mask": mask}
        edited = by_sampler_custom(
            acted, inversion, pictures.positive, latent=latent, sampler=sampler, noise=noise
        )
        assert difference(edited[..., :8], pictures.latents[..., :8]) < 1e-5
        assert difference(edited[..., 8:], pictures.latents[..., 8:]) > 0.05


def test_another_prompts_hooks_stay(pocket, pictures, inversion):
    """Hooks of the positive are registered and ours are not: the run goes on, with theirs."""
    hooks = comfy.hooks.HookGroup()
    seen = []
    wrapper = lambda executor, *args, **kwargs: seen.append(1) or executor(*args, **kwargs)  # noqa: E731
    hooks.add(comfy.hooks.TransformerOptionsHook({"wrappers": {"apply_model": {"test": [wrapper]}}}))
    positive = [[encoding, {**options, "hooks": hooks}] for encoding, options in pictures.positive]
    hooked, plain = (by_sampler_custom(pocket[0], inversion, prompt) for prompt in (positive, pictures.positive))
    torch.testing.assert_close(hooked, plain, rtol=1e-3, atol=1e-3)
    assert seen


def test_the_conditioning_carries_its_inversion_through_stock_nodes(pocket, pictures, inversion):
    negative = negative_conditioning(inversion)
    assert all("hooks" not in options for _, options in negative)  # the host would load a second model
    assert inversion_in(negative) is inversion and inversion_in(pictures.negative) is None
    (combined,) = nodes.ConditioningCombine().combine(negative[:2], negative[2:])
    (ranged,) = nodes.ConditioningSetMask().append(combined, torch.ones(1, 16, 16), "default", 1.0)
    assert inversion_in(ranged) is inversion
    refused(
        "the sampler runs 7 steps",
        by_sampler_custom,
        pocket[0],
        inversion,
        pictures.positive,
        negative=ranged,
        sigmas=torch.linspace(1, 0, 8),
    )
    assert InversionHook(inversion).clone().inversion is inversion
