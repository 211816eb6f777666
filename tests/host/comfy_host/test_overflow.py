"""Strengths that are more than a model's numbers bear: which slider it was, and at which strength."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.mode_choice import MODES
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support import tiny
from concept_sliders.tests.support.adapter_sliders import adapted_slider
from concept_sliders.tests.support.tiny import random_slider, sample, tiny_model, traces

FAR = 1e30


@pytest.fixture
def model():
    return tiny_model("SD15")


def renamed(slider: Slider, name: str) -> Slider:
    return Slider(name, slider.layers)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoHa", "difference", "bias"])
def test_the_slider_and_its_strength_are_named(model, kind, mode):
    """And the model is as it was: the next run is that of a fresh one."""
    slider = random_slider(model) if kind == "LoRA" else adapted_slider(model, kind)[0]
    near, bare = random_slider(model, 2), sample(model, "SD15")
    expected = sample(apply_sliders(model, Stack.of(near), mode), "SD15")
    stack = Stack.of(renamed(near, "near"), 0.5) + Stack.of(renamed(slider, "far"), -FAR)
    with pytest.raises(
        ValueError, match=r"overflow.*Lower the strength of slider 'far' at strength -1e\+30"
    ) as caught:
        sample(apply_sliders(model, stack, mode), "SD15")
    assert "near" not in str(caught.value)
    assert torch.equal(sample(apply_sliders(model, Stack.of(near), mode), "SD15"), expected)
    assert torch.equal(sample(model, "SD15"), bare)
    assert traces(model) == []


def test_one_of_a_sweep(model):
    stack = Stack.of(renamed(random_slider(model), "swept")).swept(0, (0.0, 1.0, FAR))
    with pytest.raises(ValueError, match=r"slider 'swept' at strength 1e\+30"):
        sample(apply_sliders(model, stack), "SD15", batch_size=3)


def test_one_that_acts_late_in_the_run(model):
    """The first answers are finite; the latent at the end of the run is not."""
    slider = random_slider(model)
    stack = Stack.of(renamed(slider, "near"), 0.5) + Stack.of(renamed(slider, "late"), FAR, Gate(0.6))
    with pytest.raises(ValueError, match=r"slider 'late' at strength 1e\+30"):
        sample(apply_sliders(model, stack), "SD15")


def test_a_model_that_fails_by_itself_is_not_laid_on_sliders(model, caplog):
    """The log says that the run has failed, and which slider would be the first to look at."""
    model.model.get_submodule("diffusion_model.out.2").bias.data[0] = float("nan")
    stack = Stack.of(renamed(random_slider(model), "far"), 0.1) + Stack.of(
        renamed(random_slider(model), "near"), 0.01
    )
    acted = sample(apply_sliders(model, stack), "SD15")
    assert bool(acted.isnan().any())
    assert "ended with numbers that are NaN" in caplog.text
    assert "farthest goes slider 'far' at strength 0.1" in caplog.text and "near" not in caplog.text


def test_a_prompt_that_a_slider_on_the_text_encoder_has_spoiled(model, monkeypatch):
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    slider = Slider("words", {name: LowRank(torch.ones(1, 4), torch.ones(4, 1))})
    spoiled = [[torch.full((1, 7, 16), float("nan")), {}]]
    monkeypatch.setattr(tiny, "condition", lambda *_: spoiled)
    with pytest.raises(ValueError, match=r"encoding of a prompt .*'words' at strength 1e\+30"):
        sample(apply_sliders(model, Stack.of(slider, FAR)), "SD15")
