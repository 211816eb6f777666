"""Parameters that no layer's formula knows, in both modes: against the model with its numbers changed by hand.

The stock loader leaves out those of modules that have other modules in them, such as Wan's modulation.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.acting_stack import acting_on
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.batch_entries import entries_are_frames
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.comfy_host.prompt_layers import prepares_prompts
from concept_sliders.sliders.equation.layer_kinds import has_formula
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.every_module import changed
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import STRENGTH, Subject
from concept_sliders.tests.support.paging import DynamicOnTheCpu, paging_cast
from concept_sliders.tests.support.tiny import difference
from safetensors.torch import save_file
from torch import Tensor

MODULATION = "diffusion_model.blocks.0.modulation"
LAYER = "diffusion_model.blocks.0.self_attn.q.weight"
VALUES = (-0.6, STRENGTH)
SILENT = ("OmniGen 2", "Boogu")  # theirs are for images to go by


def others(model: ModelPatcher) -> list[str]:
    """The names of the parameters that no layer's formula knows, but for those that prepare prompts."""
    return [
        f"{path}.{parameter}"
        for path, module in model.model.named_modules()
        if path.startswith("diffusion_model") and not prepares_prompts(model.model, path)
        for parameter, own in module._parameters.items()
        if own is not None and not has_formula(module, parameter)
    ]


def differences_for(model: ModelPatcher, names: list[str]) -> dict[str, Tensor]:
    """A difference of each parameter, by the parameter's name."""
    generator = torch.Generator().manual_seed(1)
    own = dict(model.model.named_parameters())
    return {name: 0.1 * torch.randn(own[name].shape, generator=generator) for name in names}


def slider_of(subject: Subject, differences: dict[str, Tensor]) -> Slider:
    """The slider in a file with these differences."""
    endings = {"weight": "diff", "bias": "diff_b"}
    tensors = {}
    for name, difference_ in differences.items():
        module, _, parameter = name.rpartition(".")
        known = parameter in endings
        tensors[f"{module}.{endings[parameter]}" if known else f"{name}.diff"] = difference_
    path = subject.folder / "differences.safetensors"
    save_file(tensors, path)
    return load_slider(path)


def by_hand(subject: Subject, differences: dict[str, Tensor], strength: float = STRENGTH, steps: int = 1) -> Tensor:
    with changed(subject, differences, strength) as model:
        return subject.sampled(model, steps=steps)


def objects(model: ModelPatcher) -> dict[str, int]:
    return {name: id(parameter) for name, parameter in model.model.named_parameters()}


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("stand_ins"))


def test_all_of_them_on_every_family(subject):
    """At one strength, in a short run, and swept."""
    names, before = others(subject.model), objects(subject.model)
    if not names:
        pytest.skip("formulas know all of its parameters")
    differences = differences_for(subject.model, names)
    slider = slider_of(subject, differences)
    alone = torch.cat([by_hand(subject, differences, value) for value in VALUES])
    bare = subject.sampled(subject.model, steps=1)
    for mode in ("unmerged", "merged", "auto"):
        assert difference(subject.acting(Stack.of(slider, STRENGTH), mode, steps=1), alone[1:]) < 1e-4, mode
    if not entries_are_frames(subject.model.model):
        assert difference(subject.acting(Stack.of(slider).swept(0, VALUES), steps=1), alone) < 1e-4
    assert difference(alone[1:], bare) > 1e-5 or subject.name in SILENT
    assert objects(subject.model) == before
    subject.assert_untouched()


@pytest.fixture
def wan(tmp_path):
    return Subject("Wan 2.1", tmp_path)


@contextmanager
def modulations_read(wan: Subject) -> Iterator[list[Tensor]]:
    """What each call of the block finds as its modulation."""
    block, read = wan.model.model.get_submodule(MODULATION.rpartition(".")[0]), []
    handle = block.register_forward_pre_hook(lambda module, _: read.append(module.modulation.clone()))
    try:
        yield read
    finally:
        handle.remove()


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
@pytest.mark.parametrize("gate", [Gate(0.4), Gate(0.1, 0.9, 0.3)])
def test_gates_and_ramps(wan, gate, mode):
    differences = differences_for(wan.model, [MODULATION])
    stack = Stack.of(slider_of(wan, differences), STRENGTH, gate)
    acted = apply_sliders(wan.model, stack, mode)
    strengths, real = [], acting_on(acted).strengths

    def noted(*args):
        strengths.append(real(*args))
        return strengths[-1]

    acting_on(acted).strengths = noted
    with modulations_read(wan) as read:
        wan.sampled(acted, steps=12)
    own = wan.weights[MODULATION]
    assert len(read) == len(strengths)
    assert {0.0} < {float(s[0, 0]) for s in strengths}
    for strength, found in zip(strengths, read, strict=True):
        assert torch.allclose(found, own + float(strength[0, 0]) * differences[MODULATION], atol=1e-6)


@pytest.mark.parametrize("cond_or_uncond", ["cond", "uncond"])
def test_cond_or_uncond_alone(wan, cond_or_uncond):
    """It is evaluated apart, and cond and uncond each find what is their own."""
    differences = differences_for(wan.model, [MODULATION])
    acted = apply_sliders(wan.model, Stack.of(slider_of(wan, differences), STRENGTH).restricted_to(cond_or_uncond))
    with modulations_read(wan) as read:
        ours = wan.sampled(acted, steps=1)
    own = wan.weights[MODULATION]
    assert sorted(torch.equal(found, own) for found in read) == [False, True]
    bare, whole = wan.sampled(wan.model, steps=1), by_hand(wan, differences)
    assert difference(ours, bare) > 1e-4
    assert difference(ours, whole) > 1e-4
    other = "uncond" if cond_or_uncond == "cond" else "cond"
    also = apply_sliders(acted, Stack.of(slider_of(wan, differences), STRENGTH).restricted_to(other))
    assert difference(wan.sampled(also, steps=1), whole) < 1e-4


def test_a_ramp_beside_merged_ones(wan):
    """One parameter that a still slider, a gated one and a ramped one change: what they add is one sum."""
    differences = differences_for(wan.model, [MODULATION, LAYER])
    slider = slider_of(wan, differences)
    stack = Stack.of(slider, 0.5) + Stack.of(slider, 0.3, Gate(0.2, 0.7)) + Stack.of(slider, 0.4, Gate(0.1, 1.0, 0.6))
    expected = wan.acting(stack, "unmerged", steps=8)
    for turned in (1.0, 0.5, 1.0):  # merged weights are written over where they are
        ours = wan.acting(stack.scaled(turned), "merged", steps=8)
    assert state_of(wan.model.model).merged.uses > 0
    assert difference(ours, expected) < 1e-4
    assert difference(ours, wan.acting(stack.scaled(0.5), "unmerged", steps=8)) > 1e-4


def test_beside_a_layer_in_eight_bits(wan):
    """Which keeps everything from being merged."""
    layer = wan.model.model.get_submodule(LAYER.rpartition(".")[0])
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.comfy_cast_weights = True
    differences = differences_for(wan.model, [MODULATION, LAYER])
    ours = wan.acting(Stack.of(slider_of(wan, differences), STRENGTH), "merged", steps=1)
    layer.weight = torch.nn.Parameter(layer.weight.float(), requires_grad=False)
    assert difference(ours, by_hand(wan, differences)) < 1e-4
    assert state_of(wan.model.model).merged.uses == 0


def test_a_parameter_in_eight_bits(wan):
    """It has no room for small changes: what stands in is wider, as ComfyUI casts it where it is used."""
    differences = {name: 0.1 * by for name, by in differences_for(wan.model, [MODULATION]).items()}
    block = wan.model.model.get_submodule(MODULATION.rpartition(".")[0])
    block.modulation = torch.nn.Parameter(block.modulation.to(torch.float8_e4m3fn), requires_grad=False)
    ours = wan.acting(Stack.of(slider_of(wan, differences), STRENGTH), steps=1)
    block.modulation = torch.nn.Parameter(block.modulation.float(), requires_grad=False)
    assert difference(ours, by_hand(wan, differences)) < 1e-4


@pytest.mark.parametrize("name", ["Wan 2.1", "Krea 2", "HiDream O1", "Stable Cascade B"])
@pytest.mark.parametrize("mode", ["auto", "merged"])
def test_where_comfyui_pages_weights(name, mode, tmp_path):
    subject = Subject(name, tmp_path)
    differences = differences_for(subject.model, others(subject.model))
    stack = Stack.of(slider_of(subject, differences), STRENGTH)
    dynamic = DynamicOnTheCpu.of(subject.model)
    expected = by_hand(subject, differences, steps=6)
    for _ in range(2):
        assert difference(subject.sampled(apply_sliders(dynamic, stack, mode), steps=6), expected) < 1e-4
    assert state_of(subject.model.model).merged.uses == 0
    assert difference(subject.sampled(dynamic, steps=6), expected) > 1e-4


def test_beside_a_patch_that_waits(tmp_path, monkeypatch):
    """ComfyUI works out the stock loader's change of an embedding that it pages in, and then the slider's."""
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", paging_cast(comfy.ops.cast_bias_weight))
    subject = Subject("HiDream O1", tmp_path)
    name = "diffusion_model.language_model.embed_tokens.weight"
    differences = differences_for(subject.model, [name])
    slider, module = slider_of(subject, differences), subject.model.model.get_submodule(name.removesuffix(".weight"))
    theirs = {f"{name.removesuffix('.weight')}.diff": differences[name]}
    dynamic, _ = comfy.sd.load_lora_for_models(DynamicOnTheCpu.of(subject.model), None, theirs, 0.5, 0.0)
    expected = by_hand(subject, differences, STRENGTH + 0.5)
    patched = subject.sampled(dynamic, steps=1)
    assert module.weight_lowvram_function is not None
    functions = module.weight_function
    assert difference(subject.sampled(apply_sliders(dynamic, Stack.of(slider, STRENGTH)), steps=1), expected) < 1e-4
    assert module.weight_function == functions == []
    assert difference(patched, expected) > 1e-4


class Stopped(Exception):
    pass


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_nothing_stays_after_an_exception(wan, mode):
    differences = differences_for(wan.model, [*others(wan.model), LAYER])
    before, bare = objects(wan.model), wan.sampled(wan.model, steps=6)
    acted = apply_sliders(wan.model, Stack.of(slider_of(wan, differences), STRENGTH), mode)
    block = wan.model.model.get_submodule(MODULATION.rpartition(".")[0])

    def stop(*_):
        assert objects(wan.model) != before
        raise Stopped

    handle = block.register_forward_hook(stop)
    with pytest.raises(Stopped):
        wan.sampled(acted, steps=6)
    handle.remove()
    assert objects(wan.model) == before
    assert torch.equal(wan.sampled(wan.model, steps=6), bare)
    wan.assert_untouched()
