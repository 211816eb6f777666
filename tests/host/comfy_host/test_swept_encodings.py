"""Sweeps that reach the text encoders: one encoding a strength, by batch entry of the conditioning."""

import comfy.sample
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.swept_encoding import _by_entry
from concept_sliders.comfy_host.text_encoders import apply_to_clip, encode_prompts, encoder_layer_names
from concept_sliders.pocket.models.loading import FOLDER, build_clip, weights_of
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.sweep import swept_latent
from concept_sliders.tests.support.adapter_files import KINDS, parts_of
from concept_sliders.tests.support.tiny import difference
from concept_sliders.tests.support.tiny_clip import ENCODERS, LAYER, tiny_clip
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe, TextualRecipe
from concept_sliders.training.run import train_text_encoder, train_textual
from safetensors.torch import save_file

VALUES = (-1.0, 0.0, 0.5, 2.0)
PROMPT = "an old man"


def words(clip, seed=0, size=0.05) -> Slider:
    """A slider of all linear layers of the text encoders."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, name in encoder_layer_names(clip).items():
        out, inner = weight_shape(clip.cond_stage_model.get_submodule(path), path)[:2]
        down, up = (torch.randn(shape, generator=generator) for shape in ((2, inner), (out, 2)))
        layers[name] = LowRank(down, size * up)
    return Slider("words", layers)


def encoded(clip) -> list[torch.Tensor]:
    """Every tensor of the conditioning of a prompt."""
    with torch.inference_mode():
        ((encoding, extra),) = encode_prompts(clip, [PROMPT])[PROMPT]
    return [encoding.clone(), *(value.clone() for value in extra.values() if isinstance(value, torch.Tensor))]


def assert_swept(clip, stack, strengths):
    """Every batch entry is what the stack that `strengths` gives for it encodes, by ComfyUI's own patches."""
    by_entry = encoded(apply_to_clip(clip, stack))
    for entry, alone in enumerate(strengths):
        for ours, expected in zip(by_entry, encoded(apply_to_clip(clip, alone)), strict=True):
            assert len(ours) in (1, len(strengths)) and len(expected) == 1
            assert difference(ours[entry % len(ours)][None], expected) < 1e-4, entry
    assert len(by_entry[0]) == len(strengths)
    assert difference(by_entry[0][-1], by_entry[0][0]) > 1e-2


@pytest.mark.parametrize("family", ENCODERS)
def test_every_entry_is_the_encoding_at_its_strength(family):
    clip = tiny_clip(family)
    bare, slider = encoded(clip), words(clip)
    swept = Stack.of(slider).swept(0, VALUES, repeats=2)
    assert_swept(clip, swept, [Stack.of(slider, value) for value in 2 * VALUES])
    assert all(torch.equal(now, before) for now, before in zip(encoded(clip), bare, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_change_is_swept(kind, tmp_path):
    torch.manual_seed(2)
    clip, name = tiny_clip(), LAYER.format(0)
    save_file(
        {f"{name}.{part}": tensor for part, tensor in parts_of(kind, 64, 32).items()}, tmp_path / "w.safetensors"
    )
    slider = load_slider(tmp_path / "w.safetensors")
    by_entry = encoded(apply_to_clip(clip, Stack.of(slider).swept(0, VALUES)))[0]
    for entry, value in enumerate(VALUES):
        expected = encoded(apply_to_clip(clip, Stack.of(slider, value)))[0]
        assert difference(by_entry[entry][None], expected) < 1e-5
    assert difference(by_entry[-1], by_entry[0]) > 1e-5


def test_sliders_beside_it_keep_their_strength_and_a_second_apply_adds():
    clip = tiny_clip()
    one, two = words(clip, 0), words(clip, 1)
    both = Stack.of(one).swept(0, VALUES) + Stack.of(two, 0.7)
    assert_swept(clip, both, [Stack.of(one, v) + Stack.of(two, 0.7) for v in VALUES])
    together = Stack.of(one).swept(0, VALUES) + Stack.of(two).swept(0, VALUES[::-1])
    in_turn = apply_to_clip(apply_to_clip(clip, Stack(together.sliders[:1])), Stack(together.sliders[1:]))
    assert_swept(clip, together, [Stack.of(one, a) + Stack.of(two, b) for a, b in zip(VALUES, VALUES[::-1])])
    assert difference(encoded(in_turn)[0], encoded(apply_to_clip(clip, together))[0]) < 1e-6


def sampled(model, clip, latent):
    """Two steps with guidance, by ComfyUI's own sampler."""
    with torch.inference_mode():
        positive, negative = encode_prompts(clip, [PROMPT, ""]).values()
        samples = latent["samples"]
        noise = comfy.sample.prepare_noise(samples, 1, latent.get("batch_index"))
        return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", positive, negative, samples)


@pytest.fixture(scope="module")
def latent():
    return {"samples": torch.zeros(2, 8, 8, 8), "batch_index": [0, 1]}


def test_one_run_of_a_sweep_is_every_strength_alone(pocket, latent):
    """With the text encoder in single precision: in half, merged weights are rounded, and sampling shows it."""
    model, clip = pocket[0], build_clip(dtype=torch.float32)
    clip.cond_stage_model.clip_l.transformer.load_state_dict(weights_of(FOLDER, "text"))
    slider, values = words(clip), (-1.0, 0.0, 1.0)
    stack = Stack.of(slider).swept(0, values, repeats=2)
    swept = sampled(apply_sliders(model, stack), apply_to_clip(clip, stack), swept_latent(latent, len(values)))
    for at, value in enumerate(values):
        alone = sampled(model, apply_to_clip(clip, Stack.of(slider, value)), latent)
        assert difference(swept[at :: len(values)], alone) < 1e-4
    assert difference(swept[0], swept[1]) > 1e-3


def test_a_batch_of_another_size_is_refused(pocket, latent):
    model, clip, _ = pocket
    stack = Stack.of(words(clip)).swept(0, (-1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="swept over 3 batch entries, but the batch that is sampled has 2"):
        sampled(apply_sliders(model, stack), apply_to_clip(clip, stack), latent)


def test_nothing_is_trained_on_the_encodings_of_a_sweep(pocket):
    model, clip, _ = pocket
    swept = apply_to_clip(clip, Stack.of(words(clip)).swept(0, VALUES))
    concepts = (Concept("a person", "an old person", "a young person"),)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="has 4 encodings, one for each strength of a sweep"):
            train_text_encoder(swept, EncoderRecipe(concepts=concepts, steps=1), "none")
        recipe = TextualRecipe(concepts=concepts, steps=1)
        prompts = encode_prompts(swept, recipe.prompts())
        with pytest.raises(ValueError, match="has 4 encodings, one for each strength of a sweep"):
            train_textual(model, prompts, recipe, torch.zeros(1, 8, 8, 8), "none")


def test_a_prompt_of_several_entries_is_refused_where_strengths_change_it():
    entries = torch.tensor([0, 1, 1])
    encodings = [torch.full((2, 5, 4), value) for value in (0.0, 1.0)]
    with pytest.raises(ValueError, match="encoded to 2 batch entries cannot be swept; it must be one"):
        _by_entry(encodings, entries)
    assert torch.equal(_by_entry(encodings[:1] * 2, entries), encodings[0])  # no strength changes it
    assert _by_entry([each[:1] for each in encodings], entries)[:, 0, 0].tolist() == [0, 1, 1]
