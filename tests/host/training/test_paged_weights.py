"""Gradients on models whose weights are paged or cast: no layer's weight lies still between forward and backward."""

from contextlib import nullcontext

import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.refetched_weights import refetched
from concept_sliders.tests.support.gradients import PROMPT, Samples, close, gradients
from concept_sliders.tests.support.paged_training import paged, trained
from concept_sliders.tests.support.paging import DynamicOnTheCpu
from concept_sliders.tests.support.tiny import FAMILIES, condition, tiny_model, traces
from concept_sliders.tests.support.typed_models import typed_model
from concept_sliders.training import loop
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import GRADIENT_CHECKPOINTING, TextualRecipe
from concept_sliders.training.run import RunOptions
from concept_sliders.training.trainable_layers import TrainableLayers


def given(family):
    return Samples(2, (FAMILIES[family][2], 8, 8)), {PROMPT: condition(family, 1)}


@pytest.mark.parametrize("settings", [{}, {"memory": GRADIENT_CHECKPOINTING}], ids=["once", "blocks twice"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_weights_that_stay_where_they_are(family, settings):
    samples, conditionings = given(family)
    recipe = TextualRecipe(concepts=(Concept(PROMPT, "old", "young", eta=4.0),), rank=2, layers="all", **settings)
    plain, _ = gradients(tiny_model(family), conditionings, samples, recipe=recipe)
    model = tiny_model(family)
    buffer = paged(model)
    close(plain, gradients(model, conditionings, samples, recipe=recipe)[0])
    layers = [module for module in model.model.modules() if getattr(module, "weight_function", None)]
    assert buffer.fetched > 1.5 * len(layers) > 15
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_without_fetching_them_again_they_are_wrong(monkeypatch):
    """The buffer of this test is as treacherous as it should be."""
    samples, conditionings = given("SD15")
    plain, _ = gradients(tiny_model("SD15"), conditionings, samples)
    model = tiny_model("SD15")
    paged(model)
    monkeypatch.setattr(loop, "refetched", nullcontext)
    wrong, _ = gradients(model, conditionings, samples)
    with pytest.raises(AssertionError):
        close(plain, wrong)


def test_weights_that_stay_where_they_are_cost_nothing():
    model = tiny_model("SD15")
    with refetched(model.model):
        assert not any("forward" in vars(module) for module in model.model.modules())


def test_of_weights_that_are_cast_no_copy_is_kept_for_backward():
    """A model in 8 bits that computes in 32 would be there a second time, four times as large."""
    family = "SD15"
    kept = {}
    cast = typed_model(family, torch.float8_e4m3fn, torch.float32)
    for name, model in (("plain", tiny_model(family)), ("cast", cast)):
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.inference_mode(), borrowed(model):
            weights = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
            recipe = TextualRecipe(concepts=(Concept(PROMPT, "old", "young", eta=4.0),), rank=1)
            layers = TrainableLayers(model, recipe, torch.Generator().manual_seed(1))
            denoiser = Denoiser(model, {PROMPT: condition(family, 1)})
            hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            with layers.acting(torch.ones(1, 1)), hooks, refetched(model.model):
                d = denoiser(torch.randn(1, 4, 8, 8), torch.tensor(0.6), [PROMPT])
                kept[name] = sum(size for pointer, size in sizes.items() if pointer not in weights)
            del d
    assert kept["cast"] < 1.5 * kept["plain"]


def test_a_model_that_comfyui_keeps_in_part_off_the_device_trains():
    """ComfyUI's low-VRAM loading: some layers fetch their weights, some have them."""
    family = "SD15"
    model = tiny_model(family)
    comfy.model_management.load_models_gpu([model])
    size = model.model_size()
    model.partially_unload(torch.device("cpu"), size // 2)
    fetching = [m for m in model.model.modules() if getattr(m, "comfy_cast_weights", False)]
    staying = [m for m in model.model.modules() if getattr(m, "comfy_cast_weights", True) is False]
    assert len(fetching) > 5 and len(staying) > 5
    before = {name: (id(p), p.data_ptr(), p.clone()) for name, p in model.model.named_parameters()}
    one, other = (trained(each, family) for each in (model, tiny_model(family)))
    for name, layer in one.slider.layers.items():
        torch.testing.assert_close(layer.up, other.slider.layers[name].up, rtol=1e-3, atol=1e-4)
    for name, p in model.model.named_parameters():
        assert (id(p), p.data_ptr()) == before[name][:2] and torch.equal(p, before[name][2]), name


@pytest.mark.parametrize("settings", [{}, {"memory": GRADIENT_CHECKPOINTING}], ids=["once", "blocks twice"])
@pytest.mark.parametrize("family", FAMILIES)
def test_comfyuis_own_paging_patcher_trains_the_same_slider(family, settings):
    """With previews in between, for which the model is given back and borrowed again.

    ComfyUI puts new tensors in the places of some weights when it loads such a model, its own when it unloads it.
    """
    with torch.inference_mode():
        model, still = DynamicOnTheCpu.of(tiny_model(family)), tiny_model(family)
    before, previews = memory_of(model), []
    run_options = RunOptions(progress=lambda _, latents: previews.append(latents is not None), preview_every=1)
    paged_run, run = (trained(each, family, run_options, **settings) for each in (model, still))
    assert sum(getattr(module, "comfy_cast_weights", False) for module in model.model.modules()) > 15
    assert previews[0] and previews[3]
    assert paged_run.slider.info.base_model_hash == run.slider.info.base_model_hash
    torch.testing.assert_close(*(torch.tensor(each.progress.losses) for each in (paged_run, run)))
    for name, layer in run.slider.layers.items():
        torch.testing.assert_close(paged_run.slider.layers[name].up, layer.up, rtol=1e-3, atol=1e-5)
    for name, (*_, numbers) in memory_of(model).items():
        assert torch.equal(numbers, before[name][-1]), name
    with torch.inference_mode():  # outside it ComfyUI puts copies back
        comfy.model_management.free_memory(1e30, torch.device("cpu"))
    for name, (pointer, is_inference, numbers) in memory_of(model).items():
        assert (pointer, is_inference) == before[name][:2] and torch.equal(numbers, before[name][2]), name
    assert traces(model) == []


def memory_of(model):
    """By name, where every weight and buffer lies, whether it is ComfyUI's own, and its numbers."""
    tensors = (*model.model.named_parameters(), *model.model.named_buffers())
    return {name: (tensor.data_ptr(), tensor.is_inference(), tensor.clone()) for name, tensor in tensors}
