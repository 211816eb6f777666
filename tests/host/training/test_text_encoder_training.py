"""Sliders of the text encoder alone: trained without a diffusion model, acting on any that is read by it."""

from contextlib import contextmanager
from itertools import pairwise

import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.text_encoders import TextEncoder, apply_to_clip, encode_prompts, encoder_layer_names
from concept_sliders.pocket.measuring.probe import SIZE, load_probe
from concept_sliders.pocket.measuring.sampling import Sampling, sampled
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.sweep import swept_latent
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe
from concept_sliders.training.run import train_text_encoder
from concept_sliders.training.text_encoder_samples import EncoderSamples

import nodes

SKY = Concept("portrait of a person", "portrait of a person, noon sky", "portrait of a person, night sky")


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


def trained(pocket, concept=SKY, **settings):
    with torch.inference_mode():
        recipe = EncoderRecipe(concepts=(concept,), **{"steps": 400, "learning_rate": 2e-3, **settings})
        return train_text_encoder(pocket[1], recipe, "sky")


@pytest.fixture(scope="module")
def slider(pocket):
    return trained(pocket).slider


def test_it_turns_the_attribute_of_the_prompt_it_was_trained_on(pocket, slider):
    model, clip, vae = pocket
    skies = []
    for strength in (-2.0, 0.0, 2.0):
        with torch.inference_mode():
            turned = apply_to_clip(clip, Stack.of(slider, strength))
        images = sampled((model, turned, vae), [SKY.target] * 16, Sampling(steps=8, cfg=3.0, seed=5))
        skies.append(float(load_probe().read(images)["sky"].mean()))
    assert skies[0] < skies[1] < skies[2] and skies[0] + 0.25 < skies[2], skies


def test_it_does_not_turn_back_beyond_1(pocket, slider):
    """By the encodings of a prompt, and by the images: skies from -2 to 2."""
    model, clip, vae = pocket
    assert slider.info.useful_range == (-2.0, 2.0)
    swept = apply_to_clip(clip, Stack.of(slider).swept(0, (-2.0, -1.0, 0.0, 1.0, 2.0)))
    with torch.inference_mode():
        moved = swept.encode_from_tokens(swept.tokenize(SKY.target)).flatten(1)  # (5, V)
        more, less = (clip.encode_from_tokens(clip.tokenize(p)).flatten(1) for p in (SKY.more, SKY.less))
        positive, negative = encode_prompts(swept, [SKY.target, ""]).values()
        latent = swept_latent(nodes.EmptyLatentImage().generate(SIZE, SIZE, 8)[0], 5)
        (latent,) = nodes.common_ksampler(model, 5, 8, 3.0, "euler", "simple", positive, negative, latent)
        skies = load_probe().read(nodes.VAEDecode().decode(vae, latent)[0])["sky"].view(8, 5).mean(0).tolist()
    shares = ((moved - moved[2]) @ (more - less).T).flatten() / (more - less).square().sum()
    assert (shares.diff() > 0.2).all(), shares
    assert all(one < other + 0.02 for one, other in pairwise(skies)) and skies[0] + 0.2 < skies[-1], skies


class Turning:
    """An encoder of one number beside those that stay, and a slider that moves it by a known function of strength."""

    numbers = {"m": 1.0, "l": -1.0, "t": 0.25}

    def __init__(self, moves, beside=lambda s: 0.0):
        self.moves, self.beside, self.strength = moves, beside, 0.0

    @contextmanager
    def acting(self, strengths):
        self.strength = float(strengths)
        yield
        self.strength = 0.0

    def parts(self, prompt):
        along, beside = self.moves(self.strength), self.beside(self.strength)
        return [torch.tensor([[self.numbers[prompt] + along, 3.0 + beside]])]


@pytest.mark.parametrize(
    ("moves", "beside", "expected"),
    [
        (lambda s: s, abs, (-2.0, 2.0)),
        (lambda s: 1e-6 * s, lambda s: 0.0, (-2.0, 2.0)),
        (lambda s: s if s > -1 else -2 - s, lambda s: 0.0, (-1.0, 2.0)),  # turns back
        (lambda s: min(s, 1.5), lambda s: 0.0, (-2.0, 1.5)),
        (lambda s: s, lambda s: s * s / 1.2, (-1.0, 1.0)),  # at 1.5 it goes 1.9 beside the way
        (lambda s: -s, lambda s: 0.0, (-0.5, 0.5)),  # moves towards the wrong ends from the start
    ],
)
def test_the_useful_range_ends_where_the_encodings_turn_back_or_aside(moves, beside, expected):
    recipe, slider = EncoderRecipe(concepts=(Concept("t", "m", "l"),)), Turning(moves, beside)
    source = EncoderSamples(slider, recipe, torch.Generator())
    assert source.useful_range(slider, slider) == expected


def test_strengths_of_both_signs_up_to_the_reach_are_trained():
    for both, reach in ((True, 2.0), (False, 3.0)):
        recipe = EncoderRecipe(concepts=(Concept("t", "m", "l"),), both_signs=both, reach=reach, share=0.5)
        source = EncoderSamples(Turning(abs), recipe, torch.Generator().manual_seed(0))
        met = [next(source) for _ in range(300)]
        strengths = torch.cat([each.strengths.flatten() for each in met])
        assert strengths.abs().min() == 1 and 0.95 * reach < strengths.abs().max() <= reach
        assert 0.4 < (strengths.abs() > 1).float().mean() < 0.6
        assert 0.4 < (strengths > 0).float().mean() < 0.6 if both else (strengths > 0).all()
        for each in met:  # E(t) + s share (E(m) - E(l))
            moved = 0.25 + float(each.strengths) * 0.5 * 2.0
            torch.testing.assert_close(each.target, torch.tensor([[moved, 3.0]]))


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
        base, more, less = (TextEncoder(clip).parts(p)[0] for p in (SKY.target, SKY.more, SKY.less))
    with torch.inference_mode():
        turned = apply_to_clip(clip, Stack.of(slider, 1.0))
        moved = turned.encode_from_tokens(turned.tokenize(SKY.target)).flatten(1)
    way = more - less
    assert float((moved - base - way).norm() / way.norm()) < 0.6
    reached = slider.info.recipe["reached"]  # of the encoding and the pooled one, which count alike
    assert reached["part +1"] > 0.5 and reached["beside +1"] < 0.6 and reached["part -1"] > 0.25, reached


def test_a_stock_loader_reads_its_file(pocket, slider, tmp_path):
    import comfy.sd
    import comfy.utils

    file = tmp_path / "sky.safetensors"
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
    erasing = trained(pocket, Concept(SKY.target, SKY.more, SKY.less, erase=True), steps=4).slider
    assert (erasing.info.less, erasing.info.more) == (SKY.more, SKY.less)


def test_names_are_those_of_modules(pocket):
    names = encoder_layer_names(pocket[1])
    assert len(names) == len(set(names.values())) > 10


def test_prompts_of_different_lengths_are_refused(pocket):
    long = "portrait of a very old person, " + "very old " * 40
    with pytest.raises(ValueError, match="encoded to different lengths"):
        trained(pocket, Concept("portrait of a person", long, "portrait of a person, night sky"))
