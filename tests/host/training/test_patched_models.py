"""Training on a model with patches on it: its hash is the bare model's, wherever ComfyUI keeps the weights."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.identity import weights_hash
from concept_sliders.comfy_host.text_encoders import encoder_layer_names
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.paged_training import trained
from concept_sliders.tests.support.paging import CPU, DynamicOnTheCpu, load_all, load_in_part, load_none, page
from concept_sliders.tests.support.quantised_models import FORMATS, quantised_model
from concept_sliders.tests.support.short_runs import CONCEPT
from concept_sliders.tests.support.stock_patches import patched_by_stock
from concept_sliders.tests.support.tiny import random_slider, tensors_of, tiny_model
from concept_sliders.training.recipe import EncoderRecipe
from concept_sliders.training.run import RunOptions, train_text_encoder

FAMILY = "SD15"


def hashes(bare, load):
    """Of the model before a LoRA, with it, and loaded with it."""
    patched = patched_by_stock(bare, (tensors_of(random_slider(bare, 1)), 1.0))
    with torch.inference_mode():
        seen = [weights_hash(bare), weights_hash(patched)]
        load(patched)
        seen.append(weights_hash(patched))
        patched.detach()
    return [*seen, weights_hash(bare)]


@pytest.mark.parametrize("load", [load_all, load_in_part, load_none, page], ids=lambda load: load.__name__)
def test_the_hash_is_of_the_weights_before_a_lora(load):
    model = tiny_model(FAMILY)
    assert len(set(hashes(DynamicOnTheCpu.of(model) if load is page else model, load))) == 1


@pytest.mark.parametrize("quant_format", FORMATS)
def test_so_it_is_of_quantised_weights(quant_format):
    assert len(set(hashes(quantised_model(quant_format)[0], load_all))) == 1


def with_lora(seed):
    """The tiny model with a LoRA on all of its layers."""
    model = tiny_model(FAMILY)
    return patched_by_stock(model, (tensors_of(random_slider(model, seed, size=0.05)), 1.0))


def test_one_loaded_in_part_goes_on_from_the_checkpoint_of_one_loaded_in_full(tmp_path):
    whole, part, other = with_lora(1), with_lora(1), with_lora(2)
    for model in (part, other):
        comfy.model_management.load_models_gpu([model])
        model.partially_unload(CPU, model.model_size() // 2)
        assert len(model.backup) > 5 and sum(bool(m.weight_function) for m in weighty(model)) > 5
    told = []
    run_options = RunOptions(progress=lambda done, _: told.append(done.steps), checkpoints=tmp_path)
    made = [
        trained(whole, FAMILY, run_options),
        trained(part, FAMILY, run_options, steps=5),
        trained(other, FAMILY, run_options),
    ]
    assert told == [1, 2, 3, 4, 5, 1, 2, 3]  # another LoRA is another training
    assert len(list(tmp_path.iterdir())) == 2
    assert {each.slider.info.base_model_hash for each in made} == {weights_hash(tiny_model(FAMILY))}


def weighty(model):
    return [module for module in model.model.modules() if hasattr(module, "weight_function")]


def test_a_slider_of_patched_text_encoders_has_the_hash_of_the_bare_ones():
    with torch.inference_mode():
        clip = load_pocket()[1]
        bare, names = weights_hash(clip.patcher), encoder_layer_names(clip)
        patched = comfy.sd.load_lora_for_models(
            None, clip, tensors_of(random_slider(clip.patcher, 1, names)), 0.0, 1.0
        )[1]
        comfy.model_management.load_models_gpu([patched.patcher])
        assert patched.patcher.backup
        slider = train_text_encoder(patched, EncoderRecipe(concepts=(CONCEPT,), steps=1, rank=1), "age").slider
    assert slider.info.base_model_hash == bare
