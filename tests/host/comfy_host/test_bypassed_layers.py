"""Models that read weights of layers without running them, as fused kernels do: sliders act there as well."""

import comfy.model_management
import comfy.sd
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import FeedForward
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.nodes.applying import ApplySliders
from concept_sliders.sliders.equation.reach import BypassedLayers
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import parts_of
from concept_sliders.tests.support.reports import shown
from concept_sliders.tests.support.tiny import condition, difference, sample, tiny_model, traces
from concept_sliders.training.recipe import Recipe
from concept_sliders.training.trainable_layers import TrainableLayers
from safetensors.torch import save_file

KINDS = ("LoRA", "DoRA", "LoHa", "LoKr", "OFT", "GLoRA", "difference")


class Fused(FeedForward):
    """A feed-forward network that hands its weights to a kernel."""

    def forward(self, x):
        first, _, last = self.net
        x, gate = F.linear(x, first.proj.weight, first.proj.bias).chunk(2, dim=-1)
        return F.linear(x * F.gelu(gate), last.weight, last.bias)


@pytest.fixture(scope="module")
def model():
    fused = tiny_model("SD15")
    for module in fused.model.modules():
        if type(module) is FeedForward:
            module.__class__ = Fused
    return fused


@pytest.fixture(scope="module")
def names(model):
    return [name for path, name in layer_names(model).items() if ".ff.net." in path]


def file_of(model, names, kind, folder):
    shapes = {name: model.model.get_submodule(path).weight.shape for path, name in layer_names(model).items()}
    torch.manual_seed(1)
    tensors = {f"{n}.{part}": t for n in names for part, t in parts_of(kind, *shapes[n]).items()}
    save_file(tensors, folder / "slider.safetensors")
    return tensors, load_slider(folder / "slider.safetensors")


def stock(model, tensors, strength):
    return sample(comfy.sd.load_lora_for_models(model, None, dict(tensors), strength, 0.0)[0], "SD15")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_acts_as_the_stock_loaders(model, names, kind, tmp_path):
    tensors, slider = file_of(model, names, kind, tmp_path)
    expected, bare = stock(model, tensors, 1.0), sample(model, "SD15")
    assert difference(expected, bare) > 1e-3
    for mode in ("unmerged", "merged", "auto"):
        assert difference(sample(apply_sliders(model, Stack.of(slider), mode), "SD15"), expected) < 1e-4, mode
    assert torch.equal(sample(model, "SD15"), bare) and traces(model) == []
    assert len(state_of(model.model).bypassed) == len(names)


def test_strengths_of_batch_entries_and_gates(model, names, tmp_path):
    _, slider = file_of(model, names, "LoRA", tmp_path)
    stacks = [Stack.of(slider, strength, gate=Gate(0.3)) for strength in (-0.5, 1.0)]
    alone = torch.cat([sample(apply_sliders(model, stack, "merged"), "SD15") for stack in stacks])
    swept = sample(apply_sliders(model, stacks[0].swept(0, (-0.5, 1.0)), "unmerged"), "SD15", batch_size=2)
    assert difference(swept, alone) < 1e-4
    report = "\n".join(shown(ApplySliders.execute(model, stacks[1])))
    assert f"{len(names)} of {len(names)} layers" in report


def test_what_a_controlnet_adds_is_there_in_the_evaluation_that_counts(names, tmp_path):
    """A model takes what is added off the lists: found out in a first evaluation, it is still there in the next."""
    fused = tiny_model("SD15")
    for module in fused.model.modules():
        if type(module) is FeedForward:
            module.__class__ = Fused
    _, slider = file_of(fused, names, "LoRA", tmp_path)
    x, sigma, context = torch.randn(1, 4, 8, 8), torch.tensor([3.0]), condition("SD15", 2)[0][0]
    width = fused.model.diffusion_model.middle_block[0].out_channels
    added = {"middle": [torch.randn(1, width, 1, 1)]}

    def answer(mode, added):
        acted = apply_sliders(fused, Stack.of(slider), mode)
        comfy.model_management.load_models_gpu([acted])
        options = {"wrappers": acted.wrappers, "cond_or_uncond": [0], "sigmas": sigma}
        control = {name: list(own) for name, own in added.items()}
        with torch.inference_mode():
            return fused.model.apply_model(
                x, sigma, c_crossattn=context, control=control, transformer_options=options
            )

    unmerged, merged = (answer(mode, added) for mode in ("unmerged", "merged"))
    assert difference(unmerged, merged) < 1e-4 < difference(answer("merged", {}), merged)
    assert state_of(fused.model).bypassed


def test_such_layers_are_refused_by_name_in_training(model, names):
    with borrowed(model):
        layers = TrainableLayers(model, Recipe(layers="all"), torch.Generator())
        x, sigma, context = torch.randn(1, 4, 8, 8), torch.tensor([3.0]), condition("SD15", 2)[0][0]
        with pytest.raises(BypassedLayers, match=r"ff.net.2.*leave the layer out"), layers.acting(torch.ones(1, 1)):
            model.model.apply_model(x, sigma, c_crossattn=context)
