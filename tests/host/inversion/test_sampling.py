"""Sampling with an inversion's conditioning: what is active when, and what comes of it."""

import comfy.hooks
import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.inversion.conditioning import (
    InversionHook,
    inversion_in,
    negative_conditioning,
    positive_conditioning,
)
from concept_sliders.inversion.inversion_files import load_inversion, save_inversion
from concept_sliders.nodes.composing import SweepSliders
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.inverting import STEPS, by_sampler_custom, errors, inverted, ksampled, refused
from concept_sliders.tests.support.tiny import difference, random_slider

import nodes

POSITIVE, NEGATIVE = 0, 1


def watched(model):
    """(a clone of the model, what each of its evaluations was asked: (sigma, cond_or_uncond, encodings))."""
    seen, clone = [], model.clone()

    def watch(apply_model, args):
        c = args["c"]
        seen.append((float(args["timestep"][0]), list(args["cond_or_uncond"]), c["c_crossattn"].clone()))
        return apply_model(args["input"], args["timestep"], **c)

    clone.set_model_unet_function_wrapper(watch)
    return clone, seen


@pytest.mark.parametrize("sample", [by_sampler_custom, ksampled])
def test_each_embedding_is_active_at_its_own_step_and_shares_the_prompts_batch(pocket, images, inversion, sample):
    model, seen = watched(pocket[0])
    sample(model, inversion, images.positive)
    assert len(seen) == STEPS  # one evaluation a step: guidance's two prompts in one batch
    for step, (sigma, cond_or_uncond, encodings) in enumerate(seen):
        assert sigma == pytest.approx(float(inversion.sigmas[step]))
        assert sorted(cond_or_uncond) == [POSITIVE, NEGATIVE]
        negative = encodings.chunk(2)[cond_or_uncond.index(NEGATIVE)]
        assert torch.equal(negative, inversion.embeddings[step])


@pytest.mark.parametrize(
    ("scheduler", "asked", "steps"),
    [
        *((name, 3, 3) for name in ("normal", "karras", "beta", "ddim_uniform", "sgm_uniform")),
        ("ddim_uniform", 7, 8),  # as ComfyUI makes it
    ],
)
def test_other_schedules_hold_too_also_one_of_more_steps_than_it_was_asked_for(
    pocket, images, scheduler, asked, steps, tmp_path
):
    made = inverted(pocket[0], images, scheduler=scheduler, inner_steps=1, refinement=0, steps=asked)
    assert made.steps == made.done == len(made.embeddings) == len(made.losses) == steps
    save_inversion(made, tmp_path / "made.safetensors")
    model, seen = watched(pocket[0])
    again = ksampled(model, load_inversion(tmp_path / "made.safetensors"), images.positive)
    for step, (_, cond_or_uncond, encodings) in enumerate(seen):
        assert torch.equal(encodings.chunk(2)[cond_or_uncond.index(NEGATIVE)], made.embeddings[step])
    assert len(seen) == steps
    torch.testing.assert_close(errors(again, images), made.error, rtol=1e-2, atol=1e-3)


def test_noise_that_the_sampler_adds_does_not_count(pocket, images, inversion):
    without = by_sampler_custom(pocket[0], inversion, images.positive)
    assert torch.equal(by_sampler_custom(pocket[0], inversion, images.positive, noise=True), without)
    torch.testing.assert_close(ksampled(pocket[0], inversion, images.positive), without, rtol=1e-4, atol=1e-4)


def test_ddim_is_euler(pocket, images, inversion):
    one, other = (by_sampler_custom(pocket[0], inversion, images.positive, sampler=s) for s in ("euler", "ddim"))
    assert torch.equal(one, other)


def test_in_two_parts_it_is_the_same(pocket, images, inversion):
    whole = by_sampler_custom(pocket[0], inversion, images.positive)
    half = by_sampler_custom(pocket[0], inversion, images.positive, sigmas=inversion.sigmas[:3])
    rest = by_sampler_custom(
        pocket[0], inversion, images.positive, sigmas=inversion.sigmas[2:], latent={"samples": half}
    )
    # ComfyUI puts a flow model's latent into another scale between the two
    torch.testing.assert_close(rest, whole, rtol=1e-3, atol=1e-3)
    with_noise = by_sampler_custom(
        pocket[0], inversion, images.positive, sigmas=inversion.sigmas[2:], latent={"samples": half}, noise=True
    )
    torch.testing.assert_close(with_noise, rest)


def test_a_mask_holds_in_both_parts(pocket, images, inversion):
    acted = apply_sliders(pocket[0], Stack.of(random_slider(pocket[0], size=0.1)))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    whole = by_sampler_custom(
        acted, inversion, images.positive, latent={"samples": inversion.noise, "noise_mask": mask}
    )
    latent = inversion.noise
    for part in (slice(0, 3), slice(2, None)):
        latent = by_sampler_custom(
            acted,
            inversion,
            images.positive,
            sigmas=inversion.sigmas[part],
            latent={"samples": latent, "noise_mask": mask},
        )
    assert difference(latent[..., :8], images.latents[..., :8]) < 1e-5
    torch.testing.assert_close(latent, whole, rtol=1e-3, atol=1e-3)


def test_the_prompt_comes_along(pocket, images, inversion):
    ((encoding, options),), ((own, beside),) = positive_conditioning(inversion), images.positive
    assert torch.equal(encoding, own) and torch.equal(options["pooled_output"], beside["pooled_output"])
    again = by_sampler_custom(pocket[0], inversion, positive_conditioning(inversion))
    torch.testing.assert_close(again, by_sampler_custom(pocket[0], inversion, images.positive))


def test_it_is_the_model_without_its_patches_that_counts(pocket, images, inversion):
    """A stock LoRA on the model is an edit, whether its patches are on the weights at the moment or not."""
    patched = pocket[0].clone()
    name = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = patched.model.get_parameter(name)
    patched.add_patches({name: ("diff", (0.2 * torch.randn_like(weight),))})
    bare = by_sampler_custom(pocket[0], inversion, images.positive)
    for _ in range(2):
        assert difference(by_sampler_custom(patched, inversion, images.positive), bare) > 1e-3
    assert torch.equal(by_sampler_custom(pocket[0], inversion, images.positive), bare)


def test_sliders_act_on_it_and_every_entry_of_a_sweep_keeps_its_image(pocket, images, inversion):
    stack, latent = SweepSliders.execute(
        Stack.of(random_slider(pocket[0], size=0.1)), {"samples": inversion.noise}, "0, 1", 1
    ).result
    swept = by_sampler_custom(apply_sliders(pocket[0], stack), inversion, images.positive, latent=latent)
    bare = by_sampler_custom(pocket[0], inversion, images.positive)
    torch.testing.assert_close(swept[::2], bare, rtol=1e-3, atol=1e-3)  # at strength 0
    for image in range(2):
        alone = by_sampler_custom(
            apply_sliders(pocket[0], Stack.of(stack[0].slider)),
            inversion,
            images.positive,
            latent={"samples": inversion.noise[image : image + 1]},
        )
        assert difference(swept[2 * image + 1 : 2 * image + 2], alone) < 1e-3
        assert difference(alone, bare[image : image + 1]) > 1e-2


def test_outside_a_mask_the_image_stays_as_it_was(pocket, images, inversion):
    """With a slider that changes everything, and however noise is added."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    acted = apply_sliders(pocket[0], Stack.of(random_slider(pocket[0], size=0.1)))
    for sampler, noise in (("euler", False), ("ddim", True)):
        latent = {"samples": inversion.noise, "noise_mask": mask}
        edited = by_sampler_custom(acted, inversion, images.positive, latent=latent, sampler=sampler, noise=noise)
        assert difference(edited[..., :8], images.latents[..., :8]) < 1e-5
        assert difference(edited[..., 8:], images.latents[..., 8:]) > 0.05


def test_another_prompts_hooks_stay(pocket, images, inversion):
    """Hooks of the positive are registered and ours are not: the run goes on, with theirs."""
    hooks = comfy.hooks.HookGroup()
    seen = []
    wrapper = lambda executor, *args, **kwargs: seen.append(1) or executor(*args, **kwargs)  # noqa: E731
    hooks.add(comfy.hooks.TransformerOptionsHook({"wrappers": {"apply_model": {"test": [wrapper]}}}))
    positive = [[encoding, {**options, "hooks": hooks}] for encoding, options in images.positive]
    hooked, plain = (by_sampler_custom(pocket[0], inversion, prompt) for prompt in (positive, images.positive))
    torch.testing.assert_close(hooked, plain, rtol=1e-3, atol=1e-3)
    assert seen


def test_the_conditioning_carries_its_inversion_through_stock_nodes(pocket, images, inversion):
    negative = negative_conditioning(inversion)
    assert all("hooks" not in options for _, options in negative)  # ComfyUI would load a second model
    assert inversion_in(negative) is inversion and inversion_in(images.negative) is None
    (combined,) = nodes.ConditioningCombine().combine(negative[:2], negative[2:])
    (ranged,) = nodes.ConditioningSetMask().append(combined, torch.ones(1, 16, 16), "default", 1.0)
    assert inversion_in(ranged) is inversion
    refused(
        "the sampler runs 7 steps",
        by_sampler_custom,
        pocket[0],
        inversion,
        images.positive,
        negative=ranged,
        sigmas=torch.linspace(1, 0, 8),
    )
    assert InversionHook(inversion).clone().inversion is inversion
