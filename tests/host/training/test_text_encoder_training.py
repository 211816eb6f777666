"""Sliders of the text encoder alone: trained without a diffusion model, acting on any that is read by it."""

import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.text_encoders import TextEncoder, apply_to_clip, encoder_layer_names
from concept_sliders.pocket.model import load_pocket
from concept_sliders.pocket.probe import load_probe
from concept_sliders.pocket.show import Sampling, sample
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe
from concept_sliders.training.run import train_text_encoder

AGE = Concept("portrait of a person", "portrait of a very old person", "portrait of a very young person")


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()


def trained(pocket, concept=AGE, **settings):
    with torch.inference_mode():
        recipe = EncoderRecipe(concepts=(concept,), **{"steps": 150, "learning_rate": 2e-3, **settings})
        return train_text_encoder(pocket[1], recipe, "age")


@pytest.fixture(scope="module")
def slider(pocket):
    return trained(pocket).slider


def test_it_turns_the_attribute_for_prompts_it_has_seen_and_others(pocket, slider):
    model, clip, vae = pocket
    for prompt in ("portrait of a person", "pastel drawing of a woman with a hat"):
        ages = []
        for strength in (-1.0, 0.0, 1.0):
            with torch.inference_mode():
                turned = apply_to_clip(clip, Stack.of(slider, strength))
            images = sample((model, turned, vae), prompt, 6, Sampling(steps=8, cfg=3.0, seed=5))
            ages.append(float(load_probe().read(images)["age"].mean()))
        assert ages[0] + 0.05 < ages[1] < ages[2] - 0.1, (prompt, ages)


def test_no_diffusion_model_is_loaded_and_the_encoder_is_left_as_it_was(pocket):
    clip = pocket[1]
    comfy.model_management.unload_all_models()
    before = {name: (t.data_ptr(), t.clone()) for name, t in clip.cond_stage_model.state_dict().items()}
    trained(pocket, steps=2)
    loaded = [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert pocket[0] not in loaded
    for name, tensor in clip.cond_stage_model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), name
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())


def test_the_encoding_moves_by_its_share_of_the_way(pocket, slider):
    clip = pocket[1]
    with torch.inference_mode(), borrowed(clip.patcher):
        base, more, less = (TextEncoder(clip).parts(p)[0] for p in (AGE.target, AGE.more, AGE.less))
    with torch.inference_mode():
        turned = apply_to_clip(clip, Stack.of(slider, 1.0))
        moved = turned.encode_from_tokens(turned.tokenize(AGE.target)).flatten(1)
    way = more - less
    assert float((moved - base - way).norm() / way.norm()) < 0.6


def test_a_stock_loader_reads_its_file(pocket, slider, tmp_path):
    import comfy.sd
    import comfy.utils

    file = tmp_path / "age.safetensors"
    save_slider(slider, file, torch.float32)
    assert all(name.startswith("lora_te") for name in load_slider(file).layers)
    clip = pocket[1]
    with torch.inference_mode():
        _, stock = comfy.sd.load_lora_for_models(None, clip, comfy.utils.load_torch_file(str(file)), 0.0, 1.0)
        ours = apply_to_clip(clip, Stack.of(load_slider(file), 1.0))
        one, other = (each.encode_from_tokens(each.tokenize("anyone")) for each in (stock, ours))
    torch.testing.assert_close(one, other)


def test_the_same_seed_gives_the_same_slider_and_erasing_the_opposite_target(pocket):
    one, same = (trained(pocket, steps=4).slider.layers for _ in range(2))
    assert all(torch.equal(one[name].up, same[name].up) for name in one)
    erasing = trained(pocket, Concept(AGE.target, AGE.more, AGE.less, erase=True), steps=4).slider
    assert (erasing.info.less, erasing.info.more) == (AGE.more, AGE.less)


def test_names_are_those_of_modules(pocket):
    names = encoder_layer_names(pocket[1])
    assert len(names) == len(set(names.values())) > 10


def test_prompts_of_different_lengths_are_refused(pocket):
    long = "portrait of a very old person, " + "very old " * 40
    with pytest.raises(ValueError, match="encoded to different lengths"):
        trained(pocket, Concept("portrait of a person", long, "portrait of a very young person"))
