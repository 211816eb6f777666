"""Merge Sliders with the model: changes of every kind that meet in a layer become one difference of its weight."""

import comfy.sd
import pytest
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.model_weights import ComfyModelWeights
from concept_sliders.nodes.converting import MergeSliders
from concept_sliders.nodes.loading import SaveSlider
from concept_sliders.sliders.merge_sliders import merged_stack
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_sliders import adapted_slider, slider_of
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tensors_of, tiny_model
from safetensors.torch import load_file


@pytest.fixture
def of_all_kinds():
    """(model, stack): a low-rank slider and one of each other kind on the same layers."""
    model = tiny_model("SD15")
    kinds = [slider_of(model, kind)[0] for kind in ("DoRA", "LoKr", "GLoRA")]
    kinds += [adapted_slider(model, kind)[0] for kind in ("LoHa", "difference", "LoRA with a bias")]
    return model, Stack.of(random_slider(model), 0.6) + sum((Stack.of(s, 0.7) for s in kinds), Stack())


@pytest.mark.parametrize("mode", ["unmerged", "merged", "stock"])
def test_kinds_that_meet_become_differences_of_the_model(of_all_kinds, mode, loras):
    model, stack = of_all_kinds
    expected = sample(apply_sliders(model, stack), "SD15")
    with pytest.raises(ValueError, match="connect the one that the sliders are for"):
        merged_stack(stack, 0, "x")
    merged, error = MergeSliders.execute(stack, 0, "all", model).args
    assert error == 0.0
    if mode == "stock":
        SaveSlider.execute(merged, "all", "float32")
        tensors = load_file(loras / "all.safetensors")
        acted = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
    else:
        acted = apply_sliders(model, merged, mode)
    assert difference(sample(acted, "SD15"), expected) < 1e-4
    assert difference(expected, sample(model, "SD15")) > 1e-2


def test_differences_of_the_model_are_compressed_too(of_all_kinds):
    model, stack = of_all_kinds
    expected = sample(apply_sliders(model, stack), "SD15")
    (whole, none), (part, some) = (MergeSliders.execute(stack, rank, "all", model).args for rank in (4096, 6))
    assert none < 1e-5 and difference(sample(apply_sliders(model, whole), "SD15"), expected) < 1e-4
    assert 0.01 < some < 0.9 and part[0].slider.rank <= 6
    assert difference(sample(apply_sliders(model, part), "SD15"), expected) > 1e-4


def test_a_model_with_patches_is_merged_on_as_its_file_has_it(of_all_kinds):
    """What depends on the weight is not to count in what another node has patched into it."""
    model, stack = of_all_kinds
    (before,) = (merged_stack(stack, 0, "x", ComfyModelWeights(model))[0],)
    patched = comfy.sd.load_lora_for_models(model, None, tensors_of(random_slider(model, 5)), 1.0, 0.0)[0]
    sample(patched, "SD15")
    (after,) = (merged_stack(stack, 0, "x", ComfyModelWeights(patched))[0],)
    assert before[0].slider.content_hash == after[0].slider.content_hash
