"""Layers that run before sampling: ComfyUI patches them where a slider has one strength; else they are named."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.prompt_layers import prepares_prompts
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.family_checks import STRENGTH, Subject, tensors_of
from concept_sliders.tests.support.tiny import difference


@pytest.fixture(scope="module", params=["Anima", "LTX 2", "LTX 2.3", "MiniMax H3"])
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("early"))


@pytest.fixture(scope="module")
def of_early_layers(subject):
    """A slider of the layers that prepare prompts alone."""
    return Slider("early", {n: c for n, c in subject.slider.layers.items() if n not in subject.in_sampling.layers})


def test_a_slider_of_these_layers_alone_acts_as_in_the_stock_loader(subject, of_early_layers):
    expected = subject.stock(tensors_of(of_early_layers))
    assert difference(expected, subject.bare) > 1e-3
    for mode in ("unmerged", "merged"):
        assert difference(subject.acting(Stack.of(of_early_layers, STRENGTH), mode), expected) < 1e-4, mode
    off = apply_sliders(subject.model, Stack.of(of_early_layers, 0.0))
    assert torch.equal(subject.sampled(off), subject.bare) and not off.patches  # ComfyUI has nothing to patch
    subject.sampled(subject.model)  # ComfyUI gives patched weights back when the next model runs
    subject.assert_untouched()


def test_stacks_applied_one_after_the_other_patch_their_own_layers(subject, of_early_layers):
    once = apply_sliders(subject.model, Stack.of(of_early_layers, STRENGTH))
    half = apply_sliders(subject.model, Stack.of(of_early_layers, STRENGTH / 2))
    halves = apply_sliders(half, Stack.of(of_early_layers, STRENGTH / 2))
    assert difference(subject.sampled(halves), subject.sampled(once)) < 1e-4


@pytest.mark.parametrize(
    "moving",
    [
        lambda stack: stack.gated(Gate(0.3)),
        lambda stack: stack.swept(0, [0.5, 1.0]),
        lambda stack: stack.restricted_to("cond"),
    ],
    ids=["gated", "swept", "uncond"],
)
def test_changing_strengths_leave_them_out_and_say_so(subject, of_early_layers, caplog, moving):
    model = apply_sliders(subject.model, moving(Stack.of(of_early_layers)))
    assert "prepare the prompts, before sampling begins" in caplog.text
    assert next(iter(of_early_layers.layers)) in caplog.text
    assert not model.patches


@pytest.mark.parametrize("family", ["LTX 2", "LTX 2.3"])
def test_parameters_of_blocks_are_left_out_and_named(family, tmp_path, caplog):
    """ComfyUI patches no parameters of modules that have others in them."""
    subject = Subject(family, tmp_path)
    name = "diffusion_model.video_embeddings_connector.learnable_registers"
    registers = Adapter({"diff": torch.ones_like(subject.model.model.get_parameter(name))})
    layer = next(path for path in subject.in_sampling.layers)
    slider = Slider("registers", {name: registers, layer: subject.in_sampling.layers[layer]})
    acted = subject.sampled(apply_sliders(subject.model, Stack.of(slider)), steps=1)
    assert "are left out as parameters of whole blocks" in caplog.text
    assert name.rpartition(".")[0] in caplog.text
    alone = Slider("alone", {layer: subject.in_sampling.layers[layer]})
    assert torch.equal(acted, subject.acting(Stack.of(alone), steps=1))


def test_every_layer_that_comfyui_runs_early_is_known(subject):
    """Those whose forward runs outside of an evaluation of the model, on every prompt."""
    early, inside = set(), []

    def evaluating(apply_model, args):
        inside.append(True)
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            inside.pop()

    watched = subject.model.clone()
    watched.set_model_unet_function_wrapper(evaluating)
    modules = {p: m for p, m in subject.model.model.named_modules() if p.startswith("diffusion_model.")}
    handles = [
        module.register_forward_hook(lambda *_, path=path: None if inside else early.add(path))
        for path, module in modules.items()
    ]
    subject.sampled(watched)
    for handle in handles:
        handle.remove()
    names = layer_names(subject.model)
    assert early & names.keys() == {path for path in names if prepares_prompts(subject.model.model, path)}
    assert early and all(prepares_prompts(subject.model.model, path) for path in early)
