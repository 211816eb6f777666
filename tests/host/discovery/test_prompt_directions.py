"""Directions in a prompt's encoding, on the pocket model: gradients, lengths, and sliders trained from them."""

from dataclasses import replace

import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.image_encoder import ImageEncoder
from concept_sliders.comfy_host.shifted_encoding import shift_encoding
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.discovery.prompt_directions import PromptSearch
from concept_sliders.discovery.prompt_run import PromptRecipe, discover_in_prompt
from concept_sliders.discovery.recipe import DiscoveryRecipe
from concept_sliders.discovery.run import DiscoveryOptions, discover
from concept_sliders.discovery.trajectories import Sampling, clean_latents, sampled
from concept_sliders.pocket.models.loading import load_pocket

PROMPT, SHAPE = "portrait of a person", (8, 16, 16)
RECIPE = PromptRecipe(PROMPT, directions=2, samples=6, gradients=12, sampling_steps=3)


@pytest.fixture(scope="module")
def models():
    with torch.inference_mode():
        return load_pocket()


@pytest.fixture(scope="module")
def prompts(models):
    with torch.inference_mode():
        return encode_prompts(models[1], (PROMPT, ""))


@pytest.fixture(scope="module")
def found(models, prompts):
    with torch.inference_mode():
        return discover_in_prompt(models[0], prompts, RECIPE, SHAPE)


@pytest.fixture
def search(models, prompts):
    with torch.inference_mode(), borrowed(models[0]):
        own = {prompt: for_autograd(conditioning) for prompt, conditioning in prompts.items()}
        denoiser = Denoiser(models[0], own)
        how = Sampling(RECIPE.sampling_steps, RECIPE.guidance)
        of = sampled(denoiser, lambda clean: clean.flatten(1), PROMPT, SHAPE, range(4), how)
        yield PromptSearch(denoiser, own[PROMPT], of)


def test_a_gradient_is_the_change_of_the_encoding_that_moves_one_image_towards_another(search):
    """By finite differences of <x0(x, c), z_j - z_i>, along the gradient and along a random direction."""
    generator = torch.Generator().manual_seed(1)
    (gradient,) = search.gradients(1, torch.Generator().manual_seed(1))
    step = int(torch.randint(len(search.of.sigmas), (), generator=generator))
    i, j = torch.randperm(len(search.of), generator=generator)[:2].tolist()
    difference, x, sigma = (
        search.of.clean[j, -1] - search.of.clean[i, -1],
        search.of.x[[i], step],
        search.of.sigmas[step],
    )

    @torch.no_grad()
    def towards(shift):
        conditions = search.denoiser.conditions(shift_encoding(search.conditioning, shift, [1.0]), x)
        clean = clean_latents(x, sigma, search.denoiser.evaluate(x, sigma, [conditions])[0])
        return float((clean[0].double() * difference).sum())

    def slope(direction, by=0.02):
        return (towards(by * direction) - towards(-by * direction)) / (2 * by)

    other = (
        torch.nn.functional.normalize(torch.randn(gradient.shape, generator=generator), dim=(0, 1)) + 0.3 * gradient
    )
    assert gradient.norm() == pytest.approx(1, rel=1e-4)
    assert slope(gradient) > 0
    assert slope(other) == pytest.approx(slope(gradient) * float((gradient * other).sum()), rel=0.1)


def test_directions_are_orthogonal_and_the_widest_is_first(found):
    units = torch.nn.functional.normalize(found.shifts.flatten(1), dim=1)
    torch.testing.assert_close(units @ units.T, torch.eye(2), atol=1e-4, rtol=0)
    assert len(found) == 2 and found.explained[0] >= found.explained[1] > 0 and found.prompt == PROMPT


def test_strength_1_moves_images_by_about_a_standard_deviation_and_minus_the_other_way(search):
    """By whole sampling runs at guidance 1, of the shifted encoding."""
    directions = search.directions(1, 16, 1.0, torch.Generator().manual_seed(0))
    noise = search.of.x[:, 0]
    denoiser, ends = search.denoiser, {}
    sigmas = denoiser.sigmas(RECIPE.sampling_steps)
    for strength in (-0.5, 0.0, 0.5, 1.0):
        shifted, x = shift_encoding(search.conditioning, directions.shifts[0], [strength]), noise
        for sigma, following in zip(sigmas[:-1], sigmas[1:]):
            with torch.no_grad():
                x = x + (following - sigma) * denoiser.evaluate(x, sigma, [denoiser.conditions(shifted, x)])[0]
        ends[strength] = x.flatten(1)
    whole, up, down = ((ends[strength] - ends[0.0]).mean(0) for strength in (1.0, 0.5, -0.5))
    along = torch.nn.functional.normalize(whole, dim=0)
    assert torch.cosine_similarity(up, down, dim=0) < -0.3
    assert 0.2 < float(whole.norm() / (ends[0.0] @ along).std()) < 5


def test_the_model_stays_as_it_is(models, prompts):
    before = [value.clone() for value in models[0].model.state_dict().values()]
    with torch.inference_mode():
        discover_in_prompt(models[0], prompts, replace(RECIPE, samples=4, gradients=4), SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(before, models[0].model.state_dict().values()))
    assert all(p.grad is None and p.is_inference() for p in models[0].model.parameters())


def test_a_cancel_takes_the_gradients_that_there_are_and_too_few_are_comfyuis_cancel(models, prompts):
    def cancel_at(count):
        return lambda done, total: interrupt_current_processing() if done == count else None

    with torch.inference_mode():
        short = replace(RECIPE, gradients=40)
        assert len(discover_in_prompt(models[0], prompts, short, SHAPE, searching=cancel_at(8))) == 2
        with pytest.raises(InterruptProcessingException):
            discover_in_prompt(models[0], prompts, replace(short, directions=8), SHAPE, searching=cancel_at(8))


def test_gradients_that_find_no_memory_are_worked_out_fewer_at_a_time(search, monkeypatch):
    whole, sizes, real = search.gradients(4, torch.Generator().manual_seed(3)), [], Denoiser.evaluate

    def with_room_for_one(self, x, sigma, conditions):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("no room")
        return real(self, x, sigma, conditions)

    monkeypatch.setattr(Denoiser, "evaluate", with_room_for_one)
    torch.testing.assert_close(search.gradients(4, torch.Generator().manual_seed(3)), whole, rtol=1e-3, atol=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_directions_are_trained_to_sliders_that_change_the_embedding_as_they_do(models, found):
    model, clip, vae, vision = models
    settings = {"samples": 8, "sampling_steps": 3, "held_out": 4, "head_steps": 30, "steps": 8, "rho": 4e-3}
    with torch.inference_mode():

        def trained(prompt):
            recipe = DiscoveryRecipe(prompts=(prompt,), **settings)
            prompts = encode_prompts(clip, (prompt, ""))
            given = (model, Decoder(model, vae), ImageEncoder(vision), prompts, recipe, SHAPE, "found")
            return discover(*given, DiscoveryOptions(), given=found)

        discovery = trained(PROMPT)
        with pytest.raises(ValueError, match="can be trained on that alone; got 'portrait of a man'"):
            trained("portrait of a man")
    assert len(discovery.components) == len(discovery.stack) == 2
    assert discovery.figures.own_is_highest.all() and discovery.figures.own.max() > 0.4


@pytest.mark.parametrize(("setting", "value"), [("gradients", 2), ("samples", 2), ("spread", 0.0), ("prompt", " ")])
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"Discover Prompt Directions: {setting} must be"):
        replace(RECIPE, **{setting: value})
