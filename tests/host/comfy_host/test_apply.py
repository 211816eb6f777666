"""Sliders on tiny models of ComfyUI's own classes, against ComfyUI's own weight patches."""

import comfy.lora
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from concept_sliders.comfy_host.acting_stack import acting_on
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names, match_slider
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import FAMILIES, difference, random_slider, sample, tiny_model, traces
from safetensors.torch import load_file


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_equals_the_stock_loader(family, strength, tmp_path):
    model = tiny_model(family)
    slider = random_slider(model)
    save_slider(slider, tmp_path / "s.safetensors", torch.float32)
    tensors = load_file(tmp_path / "s.safetensors")
    stock, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    ours = apply_sliders(model, Stack.of(load_slider(tmp_path / "s.safetensors"), strength))
    bare, by_stock, by_us = (sample(m, family) for m in (model, stock, ours))
    assert difference(by_us, by_stock) < 1e-4
    assert difference(by_us, bare) > 1e-2
    assert traces(model) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_names_are_read_back_by_comfyui(family):
    model = tiny_model(family)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    names = layer_names(model)
    assert len(set(names.values())) == len(names) > 10
    assert all(key_map[name] == f"{path}.weight" for path, name in names.items())


def test_unets_have_the_names_other_tools_read():
    names = layer_names(tiny_model("SD15"))
    assert names["diffusion_model.input_blocks.1.0.in_layers.2"] == "lora_unet_down_blocks_0_resnets_0_conv1"
    attention = names["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"]
    assert attention == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def test_parts_of_fused_layers_and_swapped_halves(tmp_path):
    model = tiny_model("Flux")
    generator = torch.Generator().manual_seed(0)
    outputs = {"transformer.norm_out.linear": 128}
    for block in ("transformer_blocks", "single_transformer_blocks"):
        outputs.update({f"transformer.{block}.0.attn.to_{part}": 64 for part in "qkv"})
    layers = {
        name: LowRank(torch.randn(2, 64, generator=generator), 0.1 * torch.randn(out, 2, generator=generator))
        for name, out in outputs.items()
    }
    slider = Slider("parts", layers)
    save_slider(slider, tmp_path / "s.safetensors", torch.float32)
    stock, _ = comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / "s.safetensors"), 1.0, 0.0)
    ours = sample(apply_sliders(model, Stack.of(slider)), "Flux")
    assert difference(ours, sample(stock, "Flux")) < 1e-4
    assert difference(ours, sample(model, "Flux")) > 1e-2


def test_zero_changes_no_bit():
    model = tiny_model("SD15")
    slider = random_slider(model)
    bare = sample(model, "SD15")
    assert torch.equal(sample(apply_sliders(model, Stack()), "SD15"), bare)
    assert torch.equal(sample(apply_sliders(model, Stack.of(slider, 0.0)), "SD15"), bare)


def test_batch_entries_are_the_single_runs():
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model, 1), 0.5) + Stack.of(random_slider(model, 2), 0.0)
    values = (-1.0, 0.0, 1.0)
    batch = sample(apply_sliders(model, stack.swept(1, values)), "SD15", batch_size=3)
    for entry, value in enumerate(values):
        alone = sample(apply_sliders(model, stack.swept(1, (value,))), "SD15")
        assert difference(batch[entry : entry + 1], alone) < 1e-4


def test_a_sweep_of_another_size_than_the_batch():
    model = tiny_model("SD15")
    swept = apply_sliders(model, Stack.of(random_slider(model)).swept(0, (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"2 batch entries.*has 3"):
        sample(swept, "SD15", batch_size=3)
    assert traces(model) == []


def test_applying_twice_adds_up():
    model = tiny_model("SD15")
    one, two = Stack.of(random_slider(model, 1), 0.5), Stack.of(random_slider(model, 2), -0.8)
    twice = apply_sliders(apply_sliders(model, one), two)
    assert len(acting_on(twice).stack) == 2
    assert difference(sample(twice, "SD15"), sample(apply_sliders(model, one + two), "SD15")) < 1e-6
    doubled = apply_sliders(apply_sliders(model, one), one)
    assert difference(sample(doubled, "SD15"), sample(apply_sliders(model, one.scaled(2)), "SD15")) < 1e-4


def test_clones_do_not_disturb_each_other():
    model = tiny_model("SD15")
    bare = sample(model, "SD15")
    one = apply_sliders(model, Stack.of(random_slider(model, 1)))
    two = apply_sliders(model, Stack.of(random_slider(model, 2)))
    first_one, first_two = sample(one, "SD15"), sample(two, "SD15")
    assert difference(first_one, first_two) > 1e-2
    assert torch.equal(sample(one, "SD15"), first_one)
    assert torch.equal(sample(two.clone(), "SD15"), first_two)
    assert torch.equal(sample(model, "SD15"), bare)


def test_together_with_stock_patches(tmp_path):
    model = tiny_model("SD15")
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    save_slider(theirs, tmp_path / "t.safetensors", torch.float32)
    patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / "t.safetensors"), 0.5, 0.0)
    both = apply_sliders(model, Stack.of(ours) + Stack.of(theirs, 0.5))
    assert difference(sample(apply_sliders(patched, Stack.of(ours)), "SD15"), sample(both, "SD15")) < 1e-4


def test_slider_of_another_family():
    slider = random_slider(tiny_model("Flux"))
    message = (
        "None of the .* layers of slider 'random 1' is in this diffusion model.*such as (diffusion_model[^ ]*, ){1}"
        "diffusion_model[^ ]* and diffusion_model.*the model such as .* and .*made for another family"
    )
    with pytest.raises(ValueError, match=message):
        apply_sliders(tiny_model("SD15"), Stack.of(slider))


def test_slider_of_another_width():
    model = tiny_model("SD15")
    _path, name = next(iter(layer_names(model).items()))
    with pytest.raises(ValueError, match=f"Layer {name}.*down .*up .*model's weight there is"):
        apply_sliders(model, Stack.of(Slider("wide", {name: LowRank(torch.zeros(2, 3), torch.zeros(5, 2))})))


def test_some_layers_unmatched_is_reported(caplog):
    model = tiny_model("SD15")
    whole = random_slider(model)
    odd = Slider("odd", {**whole.layers, "lora_unet_nowhere": LowRank(torch.zeros(2, 3), torch.zeros(5, 2))})
    match = match_slider(model, odd)
    assert match.unmatched == ("lora_unet_nowhere",)
    assert match.matched == len(whole.layers)
    assert f"{match.matched} of its {match.total} layers" in caplog.text


def test_text_encoder_layers_alone_leave_the_model_alone():
    model = tiny_model("SD15")
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    text_only = Slider("words", {name: LowRank(torch.ones(2, 3), torch.ones(5, 2))})
    assert torch.equal(sample(apply_sliders(model, Stack.of(text_only)), "SD15"), sample(model, "SD15"))


def test_exception_in_the_middle_leaves_no_trace():
    model = tiny_model("SD15")
    bare = sample(model, "SD15")
    calls = []

    def stop_in_the_middle(apply_model, args):
        calls.append(1)
        if len(calls) == 3:
            model.model.diffusion_model.out.register_forward_pre_hook(interrupt)
        return apply_model(args["input"], args["timestep"], **args["c"])

    def interrupt(module, args):
        module._forward_pre_hooks.clear()
        raise KeyboardInterrupt

    acted = apply_sliders(model, Stack.of(random_slider(model)))
    acted.set_model_unet_function_wrapper(stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        sample(acted, "SD15")
    assert len(calls) == 3
    assert traces(model) == []
    assert torch.equal(sample(model, "SD15"), bare)


def test_gradients_after_inference_mode():
    """A stack that has run under inference mode can be differentiated through afterwards."""
    model = tiny_model("SD15")
    acted = apply_sliders(model, Stack.of(random_slider(model)))
    sample(acted, "SD15")
    wrapper = acting_on(acted)
    context = torch.randn(1, 7, 16, requires_grad=True)
    options = {"wrappers": {"apply_model": {"concept_sliders": [wrapper]}}}
    model.model.apply_model(
        torch.randn(1, 4, 8, 8), torch.tensor([1.0]), c_crossattn=context, transformer_options=options
    ).square().mean().backward()
    assert context.grad.abs().sum() > 0
