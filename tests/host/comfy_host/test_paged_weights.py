"""Sliders on weights that ComfyUI leaves elsewhere until a layer runs, with patches that wait there."""

import comfy.memory_management
import comfy.ops
import comfy_aimdo.control
import pytest
import torch
from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.paging import (
    DynamicOnTheCpu,
    load_all,
    load_in_part,
    load_none,
    page,
    paging_cast,
    waiting_patches,
)
from concept_sliders.tests.support.stock_patches import patched_by_stock
from concept_sliders.tests.support.tiny import condition, difference, random_slider, sample, tensors_of, tiny_model

FAMILY = "SD15"
OURS, THEIRS = 0.8, 0.5
PAGED = {"in part": load_in_part, "none": load_none, "dynamic": page}


@pytest.fixture
def model():
    return tiny_model(FAMILY)


@pytest.fixture(autouse=True)
def cast_of_paged_weights(request, monkeypatch):
    if "gpu" not in request.keywords:  # there ComfyUI's own does it
        monkeypatch.setattr(comfy.ops, "cast_bias_weight", paging_cast(comfy.ops.cast_bias_weight))


def some_layers(model) -> dict[str, str]:
    """Every third: linear layers and convolutions, large and small."""
    return dict(list(layer_names(model).items())[::3])


def low_rank(model, seed: int = 1) -> Slider:
    return random_slider(model, seed, some_layers(model))


def dora(model, seed: int = 3) -> Slider:
    """DoRA: what it makes of a weight depends on the weight as it acts."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, change in low_rank(model, seed).layers.items():
        out, inner = change.up.shape[0], tuple(change.down.shape[1:])
        magnitudes = 1 + 0.3 * torch.rand(out, *(1 for _ in inner), generator=generator)
        parts = {"lora_up.weight": change.up, "lora_down.weight": change.down, "dora_scale": magnitudes}
        layers[name] = Adapter(parts)
    return Slider("DoRA", layers)


def differences(model) -> Slider:
    """Differences of weights and biases, which are no low-rank products."""
    layers, generator = {}, torch.Generator().manual_seed(5)
    for path, name in some_layers(model).items():
        module = model.model.get_submodule(path)
        parts = {"diff": 0.05 * torch.randn(weight_shape(module, name), generator=generator)}
        if module.bias is not None:
            parts["diff_b"] = 0.05 * torch.randn(module.bias.shape, generator=generator)
        layers[name] = Adapter(parts)
    return Slider("differences", layers)


SLIDERS = {"LoRA": low_rank, "DoRA": dora, "differences": differences}


def stock_file(slider: Slider) -> dict[str, torch.Tensor]:
    """The slider's tensors by the stock loader's keys."""
    if not isinstance(next(iter(slider.layers.values())), Adapter):
        return tensors_of(slider)
    return {f"{n}.{part}": t for n, change in slider.layers.items() for part, t in change.parts.items()}


def answer(patcher: ModelPatcher, load, sigma: float = 3.0, batch_size: int = 1) -> torch.Tensor:
    """The noise that the model sees in a latent, its weights loaded in a given way, and unloaded afterwards."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).repeat(batch_size, 1, 1, 1)
    sigmas = torch.full((batch_size,), sigma)
    with torch.inference_mode():
        load(patcher)
        patcher.pre_run()
        options = {"wrappers": patcher.wrappers, "cond_or_uncond": [0], "sigmas": sigmas}
        options["sample_sigmas"] = torch.linspace(14.0, 0.0, 20)
        context = condition(FAMILY, 2)[0][0].repeat(batch_size, 1, 1)
        denoised = patcher.model.apply_model(x, sigmas, c_crossattn=context, transformer_options=options)
        patcher.cleanup()
        patcher.detach()
    return (x - denoised) / sigma


def paged_from(model: ModelPatcher, how: str) -> ModelPatcher:
    return DynamicOnTheCpu.of(model) if how == "dynamic" else model


@pytest.mark.parametrize("how", PAGED)
def test_the_replacement_is_what_comfyui_makes_of_loaded_weights(model, how):
    """With patches of the stock loader alone; and nothing of them stays."""
    file, strength = stock_file(random_slider(model, 2)), THEIRS
    loaded = answer(patched_by_stock(model, (file, strength)), load_all)
    bare = answer(model, load_all)
    patched, seen = patched_by_stock(paged_from(model, how), (file, strength)), []

    def load(patcher):
        PAGED[how](patcher)
        seen.append(waiting_patches(patcher))

    assert difference(answer(patched, load), loaded) < 1e-4
    assert seen[0] > 10
    assert difference(bare, loaded) > 1e-2
    assert torch.equal(answer(paged_from(model, how), PAGED[how]), bare)


@pytest.mark.parametrize(
    ("kind", "mode"), [("LoRA", "unmerged"), ("LoRA", "merged"), ("DoRA", "merged"), ("differences", "unmerged")]
)
@pytest.mark.parametrize("how", PAGED)
def test_sliders_beside_patches_that_wait(model, how, kind, mode):
    """Against the stock loader with both files, one after the other, and every weight in its place."""
    theirs, slider = stock_file(random_slider(model, 2)), SLIDERS[kind](model)
    both = (theirs, THEIRS), (stock_file(slider), OURS)
    expected, alone = (answer(patched_by_stock(model, *files), load_all) for files in (both, both[:1]))
    patched = patched_by_stock(paged_from(model, how), both[0])
    acted = apply_sliders(patched, Stack.of(slider, OURS), mode)
    assert type(acted) is type(patched)
    assert difference(answer(acted, PAGED[how]), expected) < 1e-4
    assert difference(expected, alone) > 1e-2
    assert state_of(model.model).merged.uses == 0  # a merged weight would stand for one that is not there


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize("how", PAGED)
def test_paged_weights_without_patches(model, how, kind):
    slider = SLIDERS[kind](model)
    expected = answer(patched_by_stock(model, (stock_file(slider), OURS)), load_all)
    acted = apply_sliders(paged_from(model, how), Stack.of(slider, OURS))
    assert difference(answer(acted, PAGED[how]), expected) < 1e-4


@pytest.mark.parametrize("how", PAGED)
def test_batch_entries_and_gates_on_paged_weights(model, how):
    slider = random_slider(model)
    gated = Stack.of(slider, 1.0, Gate(0.3))
    values = (-0.5, 0.0, OURS)
    paged = paged_from(model, how)
    batch = answer(apply_sliders(paged, gated.swept(0, values)), PAGED[how], sigma=1.0, batch_size=3)
    for entry, value in enumerate(values):
        expected = answer(patched_by_stock(model, (stock_file(slider), value)), load_all, sigma=1.0)
        assert difference(batch[entry : entry + 1], expected) < 1e-4
    assert torch.equal(
        answer(apply_sliders(paged, gated), PAGED[how], sigma=14.0), answer(paged, PAGED[how], sigma=14.0)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="weights are paged on a GPU only")
@pytest.mark.parametrize("kind", SLIDERS)
def test_weights_that_are_really_paged(model, kind, monkeypatch):
    """ComfyUI's dynamic patcher on a GPU, as `main.py` sets it up, in a run of its own sampler."""
    assert comfy_aimdo.control.init_devices([0])
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    theirs, slider = stock_file(random_slider(model, 2)), SLIDERS[kind](model)
    both = (theirs, THEIRS), (stock_file(slider), OURS)
    expected = sample(patched_by_stock(model, *both), FAMILY)
    gpu = ModelPatcherDynamic(tiny_model(FAMILY).model, torch.device("cuda", 0), torch.device("cpu"))
    acted = apply_sliders(patched_by_stock(gpu, both[0]), Stack.of(slider, OURS))
    assert acted.is_dynamic()
    for _ in range(2):  # the second run finds weights on the device
        assert difference(sample(acted, FAMILY).cpu(), expected) < 1e-3
    assert state_of(acted.model).merged.uses == 0
