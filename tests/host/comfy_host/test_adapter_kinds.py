"""Changes that are no low-rank product, on a model: against the stock loader, in both modes, and in sweeps."""

import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_sliders import adapted_parts, adapted_slider
from concept_sliders.tests.support.tiny import difference, sample, tiny_model, traces

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"


@pytest.fixture
def model():
    return tiny_model(FAMILY)


KINDS = tuple(adapted_parts((8, 8)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_that_are_no_product_equal_the_stock_loader(model, kind, mode):
    slider, tensors = adapted_slider(model, kind)
    strength = 1.0 if kind == "OFT" else 0.8  # ComfyUI takes an OFT's strength twice: 0.8 would be 0.64
    stock, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    ours = sample(apply_sliders(model, Stack.of(slider, strength), mode), FAMILY)
    assert difference(ours, sample(stock, FAMILY)) < 1e-4
    assert difference(ours, sample(model, FAMILY)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_changes_that_are_no_product_sweep(model, kind):
    slider, _ = adapted_slider(model, kind)
    values = (-0.5, 0.0, 0.8)
    batch = sample(apply_sliders(model, Stack.of(slider).swept(0, values)), FAMILY, batch_size=3)
    for entry, value in enumerate(values):
        alone = sample(apply_sliders(model, Stack.of(slider, value)), FAMILY)
        assert difference(batch[entry : entry + 1], alone) < 1e-4


def test_norms(model):
    names = [n for n, m in model.model.named_modules() if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm)]
    torch.manual_seed(0)
    layers, tensors = {}, {}
    for name in names:
        size = model.model.get_submodule(name).weight.shape
        parts = {"w_norm": 0.3 * torch.randn(size), "b_norm": 0.3 * torch.randn(size)}
        layers[name] = Adapter(parts)
        tensors |= {f"{name}.{ending}": tensor for ending, tensor in parts.items()}
    stock, _ = comfy.sd.load_lora_for_models(model, None, tensors, 0.8, 0.0)
    expected = sample(stock, FAMILY)
    assert difference(expected, sample(model, FAMILY)) > 1e-3
    for mode in MODES:
        ours = sample(apply_sliders(model, Stack.of(Slider("norms", layers), 0.8), mode), FAMILY)
        assert difference(ours, expected) < 1e-4


def test_a_change_of_another_shape_is_named(model):
    name = next(iter(layer_names(model).values()))
    odd = Slider(
        "odd",
        {
            name: Adapter(
                {
                    "hada_w1_a": torch.ones(3, 2),
                    "hada_w1_b": torch.ones(2, 5),
                    "hada_w2_a": torch.ones(3, 2),
                    "hada_w2_b": torch.ones(2, 5),
                }
            )
        },
    )
    with pytest.raises(ValueError, match=r"LoHa change is of shape \(3, 5\), but the model.s weight there is"):
        sample(apply_sliders(model, Stack.of(odd)), FAMILY)
    assert traces(model) == []
