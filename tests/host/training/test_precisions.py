"""Training on weights as ComfyUI stores them: half precision, 8 bits, quantised."""

import comfy.model_management
import pytest
import torch
from concept_sliders.tests.support.gradients import PROMPT, Samples, gradients
from concept_sliders.tests.support.quantised_models import FORMATS, quantised_model
from concept_sliders.tests.support.tiny import FAMILIES, condition, tiny_model
from concept_sliders.tests.support.typed_models import typed_model
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import train_textual

RECIPE = TextualRecipe(
    concepts=(Concept("a person", "an old person", "a young person", eta=4.0),),
    rank=2,
    steps=3,
    learning_rate=1e-3,
    rollout_steps=2,
    samples_per_rollout=2,
)


def state(model):
    """Every parameter: which object it is, and its numbers."""
    return {
        name: (id(p), p.dequantize() if type(p.data) is not torch.Tensor else p.detach().float().clone())
        for name, p in model.model.named_parameters()
    }


def assert_trains(model, family):
    comfy.model_management.load_models_gpu([model])  # ComfyUI may pack weights anew as it loads them
    before = state(model)
    conditionings = {p: condition(family, seed) for seed, p in enumerate(RECIPE.prompts())}
    with torch.inference_mode():
        latents = torch.zeros(2, FAMILIES[family][2], 8, 8)
        trained = train_textual(model, conditionings, RECIPE, latents, "trained")
    assert trained.progress.steps == 3 and not trained.progress.failure
    assert all(torch.isfinite(torch.tensor(trained.progress.losses)))
    learned = [bool(layer.up.any()) for layer in trained.slider.layers.values()]
    assert sum(learned) > len(learned) / 2
    after = state(model)
    for name, (identity, numbers) in before.items():
        assert after[name][0] == identity and torch.equal(after[name][1], numbers), name


def assert_gradients_are_those_of_float32(model, single, family, tolerance):
    samples, conditionings = Samples(2, (FAMILIES[family][2], 8, 8)), {PROMPT: condition(family, 1)}
    exact, _ = gradients(single, conditionings, samples)
    rounded, training = gradients(model, conditionings, samples)
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (exact, rounded))
    other = other / training._scaler.get_scale() if training._scaler.is_enabled() else other
    assert float((one - other).norm() / one.norm()) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family, dtype):
    model = typed_model(family, dtype, None)
    assert_trains(model, family)
    # three digits of fp16, two of bf16, added up over the layers
    assert_gradients_are_those_of_float32(model, tiny_model(family), family, 0.02 if dtype == torch.float16 else 0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bit_floats_that_comfyui_casts_as_it_goes(family):
    model, single = typed_model(family, torch.float8_e4m3fn, torch.float32), tiny_model(family)
    for own, source in zip(single.model.parameters(), model.model.parameters(), strict=True):
        own.data = source.data.float()
    assert_trains(model, family)
    assert_gradients_are_those_of_float32(model, single, family, 1e-4)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_quantised_weights(quant_format):
    packed, single = quantised_model(quant_format)
    assert_trains(packed, "SD15")
    # of 8-bit integers ComfyUI rounds the layers' inputs, too
    assert_gradients_are_those_of_float32(packed, single, "SD15", 0.05 if quant_format.startswith("int8") else 1e-3)
