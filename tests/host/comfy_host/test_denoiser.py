"""Prompts that a model cannot take in one batch are asked about apart, and all else in as few batches as it can."""

from contextlib import ExitStack

import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import difference
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.trainable_layers import TrainableLayers

RECIPE = TextualRecipe(concepts=(Concept("a", "b", "c"),), rank=2, layers="all")
HALF = torch.tensor([[1, 1, 1, 0, 0, 0, 0]])


@pytest.fixture
def asked():
    """asked(family, conditionings): its denoiser, latents, a sigma, and the entries of each evaluation."""
    with torch.inference_mode(), ExitStack() as loans:

        def of(family, conditionings):
            family = FAMILIES[family]
            model = family.build()
            loans.enter_context(borrowed(model))
            denoiser = Denoiser(model, {prompt: for_autograd(given) for prompt, given in conditionings.items()})
            calls, apply_model = [], model.model.apply_model

            def noted(x, *args, **kwargs):
                calls.append(len(x))
                return apply_model(x, *args, **kwargs)

            model.model.apply_model = noted
            return denoiser, family.noise(2), denoiser.sigmas(4)[1], calls

        yield of


def one_by_one(denoiser, x, sigma, prompts, layers=None, strengths=None):
    taken = [None if strengths is None else strengths[place : place + 1] for place in range(len(prompts))]
    return torch.cat([denoiser.predict(x, sigma, [p], layers, s) for p, s in zip(prompts, taken)])


def test_prompts_of_one_length_go_together_and_come_back_in_their_order(asked):
    family = FAMILIES["Qwen-Image"]
    conditionings = {p: family.conditioning(seed, 3 * (p in "bd")) for seed, p in enumerate("abcd")}
    denoiser, x, sigma, calls = asked("Qwen-Image", conditionings)
    together = denoiser.predict(x, sigma, "abcd")
    assert calls == [4, 4]  # two prompts on two batch entries, twice
    assert difference(together, one_by_one(denoiser, x, sigma, "abcd")) < 1e-5


def test_a_mask_of_one_prompt_is_not_laid_over_others(asked):
    family = FAMILIES["Qwen-Image"]
    conditionings = {p: family.conditioning(seed) for seed, p in enumerate("ab")}
    conditionings["a"][0][1]["attention_mask"] = HALF
    denoiser, x, sigma, calls = asked("Qwen-Image", conditionings)
    together = denoiser.predict(x, sigma, "ab")
    assert calls == [2, 2]
    assert difference(together, one_by_one(denoiser, x, sigma, "ab")) < 1e-5


def test_prompts_that_the_model_reads_repeated_go_into_one_batch(asked):
    """A UNet's cross-attention, as ComfyUI has it: twice the same words say the same."""
    family = FAMILIES["SD 1"]
    conditionings = {p: family.conditioning(seed, more) for seed, (p, more) in enumerate({"a": 0, "b": 7}.items())}
    denoiser, x, sigma, calls = asked("SD 1", conditionings)
    together = denoiser.predict(x, sigma, "ab")
    assert calls == [4]
    assert difference(together, one_by_one(denoiser, x, sigma, "ab")) < 1e-5


def test_each_prompt_keeps_its_strengths(asked):
    family = FAMILIES["Qwen-Image"]
    conditionings = {p: family.conditioning(seed, 2 * seed) for seed, p in enumerate("abc")}
    denoiser, x, sigma, _ = asked("Qwen-Image", conditionings)
    layers = TrainableLayers(denoiser.patcher, RECIPE, torch.Generator().manual_seed(0))
    for parameter in layers.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    strengths = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.5, 2.0]])[..., None]
    together = denoiser.predict(x, sigma, "abc", layers, strengths)
    assert difference(together, one_by_one(denoiser, x, sigma, "abc", layers, strengths)) < 1e-5
    assert difference(together, one_by_one(denoiser, x, sigma, "abc")) > 1e-3
