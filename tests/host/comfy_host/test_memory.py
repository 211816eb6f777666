"""What sliders keep on the device: given back whichever clone is loaded, and when ComfyUI needs the memory."""

import gc
import weakref

import comfy.model_management
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tensors_of, tiny_model

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"


@pytest.fixture
def model():
    comfy.model_management.unload_all_models()
    return tiny_model(FAMILY)


def kept_by(model) -> int:
    return state_of(model.model).size_bytes


@pytest.mark.parametrize("mode", MODES)
def test_a_bare_clone_that_is_unloaded_gives_it_back(model, mode):
    acted = apply_sliders(model, Stack.of(random_slider(model)), mode)
    before = sample(acted, FAMILY)
    assert kept_by(model) > 0
    sample(model, FAMILY)
    comfy.model_management.unload_all_models()
    assert kept_by(model) == 0
    assert comfy.model_management.current_loaded_models == []
    assert torch.equal(sample(acted, FAMILY), before)


@pytest.mark.parametrize("mode", MODES)
def test_another_clone_takes_it_over(model, mode):
    """Turning a slider makes another clone, for which nothing has to be made anew."""
    slider = random_slider(model)
    sample(apply_sliders(model, Stack.of(slider, 0.4), mode), FAMILY)
    kept = {id(t) for t in state_of(model.model).merged.tensors}
    size = kept_by(model)
    sample(apply_sliders(model, Stack.of(slider, 0.5), mode), FAMILY)
    assert kept_by(model) == size
    assert {id(t) for t in state_of(model.model).merged.tensors} == kept


def test_comfyui_counts_it_and_takes_a_part_for_the_whole(model):
    """Short of memory, ComfyUI asks models for a part of what they hold."""
    acted = apply_sliders(model, Stack.of(random_slider(model)), "merged")
    before = sample(acted, FAMILY)
    sample(model, FAMILY)
    (entry,) = [m for m in comfy.model_management.current_loaded_models if m.model_loaded_memory() == kept_by(model)]
    assert entry.model is not model
    entry.model_unload(memory_to_free=1)
    assert kept_by(model) == 0
    assert torch.equal(sample(acted, FAMILY), before)


def test_weights_that_leave_the_device_take_merged_ones_along(model):
    acted = apply_sliders(model, Stack.of(random_slider(model)), "merged")
    before = sample(acted, FAMILY)
    assert state_of(model.model).merged.size_bytes > 0
    layer = model.model.get_submodule(next(iter(match_slider(model, random_slider(model)).layers)))
    own = layer._parameters["weight"]
    layer._parameters["weight"] = torch.nn.Parameter(own.to("meta"), requires_grad=False)

    def stop(module, args):
        raise RuntimeError("as far as this")

    handle = model.model.diffusion_model.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="as far as this"):
        sample(acted, FAMILY)
    handle.remove()
    assert state_of(model.model).merged.size_bytes == 0
    layer._parameters["weight"] = own
    assert difference(sample(acted, FAMILY), before) < 1e-5


def test_the_model_can_go():
    """Nothing of the sliders' keeps a model alive that nobody has."""
    comfy.model_management.unload_all_models()
    model = tiny_model(FAMILY)
    acted = apply_sliders(model, Stack.of(random_slider(model)), "merged")
    sample(acted, FAMILY)
    assert len(comfy.model_management.current_loaded_models) == 2
    tree = weakref.ref(model.model)
    del acted, model
    gc.collect()
    assert tree() is None
    assert comfy.model_management.current_loaded_models == []


@pytest.mark.parametrize("mode", MODES)
def test_tensors_of_sliders_that_nobody_has_are_not_kept(model, mode):
    """As many sliders as one likes, one after the other: those of the last two stacks are there, and then none."""
    tensors = []
    for seed in range(6):
        slider = random_slider(model, seed)
        tensors += [weakref.ref(layer.down) for layer in slider.layers.values()]
        sample(apply_sliders(model, Stack.of(slider), mode), FAMILY)
        each = len(slider.layers)
        del slider
    gc.collect()
    assert sum(t() is not None for t in tensors) <= 2 * each
    comfy.model_management.unload_all_models()
    gc.collect()
    assert not any(t() is not None for t in tensors)


def test_a_match_is_found_again_while_a_stack_has_it(model):
    slider = random_slider(model)
    acted = apply_sliders(model, Stack.of(slider))
    assert match_slider(model, slider) is match_slider(acted, random_slider(model))


def test_stock_patches_are_loaded_as_ever(model):
    slider = random_slider(model)
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors_of(slider), 0.7, 0.0)
    acted = apply_sliders(patched, Stack.of(random_slider(model, 2)), "merged")
    both = sample(acted, FAMILY)
    assert difference(sample(model, FAMILY), both) > 1e-2
    assert torch.equal(sample(acted, FAMILY), both)
