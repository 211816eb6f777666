"""Sliders on models that ComfyUI compiles."""

import shutil

import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import parts_of
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tiny_model
from safetensors.torch import save_file

FAMILY = "SD15"
MODES = mode_choice.MODES[1:]


def compiled_by(backend: str, model):
    return TorchCompileModel.execute(model, backend).args[0]


@pytest.fixture(scope="module")
def compiled():
    """(the model, the same one compiled): what was compiled is used again by every test."""
    torch.compiler.reset()
    model = tiny_model(FAMILY)
    return model, compiled_by("cudagraphs", model)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """DoRA on one layer and LoKr on another."""
    torch.manual_seed(0)
    block, tensors = "diffusion_model.middle_block.1.transformer_blocks.0", {}
    for name, kind in (("attn1.to_q", "DoRA"), ("attn1.to_v", "LoKr")):
        tensors |= {f"{block}.{name}.{part}": 3 * tensor for part, tensor in parts_of(kind, 64, 64).items()}
    path = tmp_path_factory.mktemp("kinds") / "kinds.safetensors"
    save_file(tensors, path)
    return load_slider(path)


STACKS = {
    "plain": lambda slider, _: Stack.of(slider),
    "turned": lambda slider, _: Stack.of(slider, -0.5),
    "gated": lambda slider, _: Stack.of(slider, 1.0, Gate(0.4)),
    "swept, on uncond": lambda slider, _: Stack.of(slider).swept(0, (-0.5, 1.0)).restricted_to("uncond"),
    "DoRA and LoKr": lambda _, kinds: Stack.of(kinds),
}


@pytest.mark.parametrize("stack_of", STACKS)
@pytest.mark.parametrize("mode", MODES)
def test_stacks_act_as_uncompiled(compiled, kinds, mode, stack_of):
    """And without sliders, the compiled model is as it was."""
    model, fast = compiled
    bare, stack = sample(model, FAMILY), STACKS[stack_of](random_slider(model), kinds)
    expected = sample(apply_sliders(model, stack, mode), FAMILY, stack.batch_size)
    acted = sample(apply_sliders(fast, stack, mode), FAMILY, stack.batch_size)
    assert difference(acted, expected) < 1e-4
    assert difference(expected, bare.expand_as(expected)) > 1e-3
    assert difference(sample(fast, FAMILY), bare) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_sliders_that_were_applied_before(compiled, mode):
    model, _ = compiled
    acted = apply_sliders(model, Stack.of(random_slider(model)), mode)
    assert difference(sample(compiled_by("cudagraphs", acted), FAMILY), sample(acted, FAMILY)) < 1e-4


@pytest.mark.release
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_to_machine_code():
    """Both modes on one compiled model, however the strength changes."""
    torch.compiler.reset()
    model = tiny_model(FAMILY)
    slider, bare, fast = random_slider(model), sample(model, FAMILY), compiled_by("inductor", model)
    assert difference(sample(fast, FAMILY), bare) < 1e-4
    for mode in MODES:
        for strength in (1.0, -0.5):
            stack = Stack.of(slider, strength)
            expected = sample(apply_sliders(model, stack, mode), FAMILY)
            assert difference(sample(apply_sliders(fast, stack, mode), FAMILY), expected) < 1e-4
    assert difference(sample(fast, FAMILY), bare) < 1e-4
