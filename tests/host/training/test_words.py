"""What the text encoders read of a concept: ends that they read alike, and words that say nothing to them."""

import pytest
import torch
from concept_sliders.comfy_host.prompt_tokens import tokens_of, unread_embeddings
from concept_sliders.comfy_host.text_encoders import encode_prompts, encoder_layer_names
from concept_sliders.nodes.auditioning import AuditionSlider
from concept_sliders.nodes.training import TrainSlider
from concept_sliders.tests.support.tiny_clip import TINY, TINY_T5, tiny_clip
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe, TextualRecipe
from concept_sliders.training.run import train_text_encoder, train_textual
from concept_sliders.training.words import check_words
from safetensors.torch import save_file

PORTRAIT = "portrait of a person"


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """A folder with an embedding for CLIP-L, one for T5, and one for both."""
    folder = tmp_path_factory.mktemp("embeddings")
    widths = {"clip_l": TINY["hidden_size"], "t5xxl": TINY_T5["d_model"]}
    for name, keys in {"narrow": ["clip_l"], "wide": ["t5xxl"], "both": [*widths]}.items():
        save_file({key: torch.ones(2, widths[key]) for key in keys}, folder / f"{name}.safetensors")
    return folder


def looking_in(clip, folder):
    """A CLIP whose tokenizers know the folder, and the widths of the tiny encoders."""
    for name, tokenizer in vars(clip.tokenizer).items():
        if hasattr(tokenizer, "embedding_directory"):
            tokenizer.embedding_directory = [str(folder)]
            tokenizer.embedding_size = TINY["hidden_size"] if name == "clip_l" else TINY_T5["d_model"]
    return clip


@pytest.fixture(scope="module")
def flux(embeddings):
    """CLIP-L and T5, which is alone in having a token for words that it does not know."""
    return looking_in(tiny_clip("Flux"), embeddings)


@pytest.fixture(scope="module")
def sd1(embeddings):
    return looking_in(tiny_clip("SD 1"), embeddings)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("embedding:gone", "embedding:lost"),
        ("a man, embedding:gone", "a man, embedding:lost"),
        ("(embedding:gone:1.2) man", " man"),
        ("embedding:wide", "embedding:gone"),
    ],
)
def test_ends_of_embeddings_that_are_not_there_are_refused_and_the_embeddings_named(sd1, more, less):
    with pytest.raises(ValueError, match="nothing to learn") as refused:
        check_words(sd1, [Concept("a person", more, less)])
    assert repr(more) in str(refused.value)
    assert all(repr(name) in str(refused.value) for name in ("gone", "lost", "wide") if f":{name}" in more + less)


def test_what_is_read_alike_is_what_has_one_encoding(sd1, flux):
    """By ComfyUI's own encodings: words, weights, and embeddings that are left out or not."""
    prompts = [
        "an old man",
        "an old  man",
        "an (old:1.1) man",
        "",
        "embedding:gone",
        "embedding:narrow",
        "embedding:wide",
    ]
    with torch.inference_mode():
        by_sd1, by_flux = (encode_prompts(clip, prompts) for clip in (sd1, flux))
    for one in prompts:
        for other in prompts:
            alike = tokens_of(sd1, one) == tokens_of(sd1, other)
            assert alike == torch.equal(by_sd1[one][0][0], by_sd1[other][0][0]), (one, other)
            # Flux's encoding is T5's, and its pooled one CLIP's, in which weights have no part
            by_clip, by_t5 = (tokens_of(flux, one)[name] == tokens_of(flux, other)[name] for name in ("l", "t5xxl"))
            (encoding, extra), (its, its_extra) = by_flux[one][0], by_flux[other][0]
            assert by_t5 == torch.equal(encoding, its), (one, other)
            if ":1.1" not in one + other:
                assert by_clip == torch.equal(extra["pooled_output"], its_extra["pooled_output"]), (one, other)


def test_an_encoder_that_lacks_an_embedding_is_named(flux, sd1):
    said = {"gone": ("l", "t5xxl"), "narrow": ("t5xxl",), "wide": ("l",)}
    prompts = ["a, embedding:gone embedding:both", "(embedding:narrow:0.5), x", "embedding:wide, or so"]
    assert unread_embeddings(flux, prompts) == said
    assert unread_embeddings(sd1, prompts) == {"gone": ("l",), "wide": ("l",)}


def test_one_encoder_of_two_that_cannot_tell_the_ends_apart_is_named(flux):
    concept = Concept("a man", "a man embedding:narrow", "a man")
    said = " ".join(check_words(flux, [concept]))
    assert "t5xxl cannot tell the ends 'a man embedding:narrow' and 'a man' apart; l can" in said
    assert "The embedding 'narrow' is not one for t5xxl" in said


def test_words_that_the_pocket_model_does_not_know(pocket):
    _, clip, _ = pocket
    unknown = Concept(PORTRAIT, f"{PORTRAIT}, quixotic", f"{PORTRAIT}, 男")
    with pytest.raises(ValueError, match=r"cannot tell the ends .*quixotic.* apart, and there is nothing to learn"):
        check_words(clip, [unknown])
    age = Concept("zebra", "very old person", "very young person", ("with glasses", "男", "xyzzy with glasses"))
    said = check_words(clip, [age, unknown])
    assert [each for each in said if "'zebra'" in each] == [
        "The text encoder knows no word of 'zebra': it says nothing."
    ]
    assert any("'男': it says nothing" in each for each in said)
    assert any("cannot tell the phrases 'with glasses' and 'xyzzy with glasses' apart" in each for each in said)
    assert any("quixotic" in each and "this concept teaches nothing" in each for each in said)
    assert len(said) == 4


def test_plain_concepts_are_taken_without_a_word(pocket, sd1, flux):
    for clip in (pocket[1], sd1, flux):
        concept = Concept(PORTRAIT, "very old person", "very young person", ("with glasses", "without glasses"))
        assert check_words(clip, [concept]) == ()


def test_a_training_of_the_encoder_is_refused_before_it_begins(sd1):
    with torch.inference_mode(), pytest.raises(ValueError, match="ComfyUI has not found the embedding 'gone'"):
        train_text_encoder(sd1, EncoderRecipe(concepts=(Concept("", "embedding:gone", "embedding:lost"),)), "none")


def test_the_layers_of_an_encoder_that_cannot_tell_them_apart_are_not_trained(flux):
    """They would learn the rounding of two equal encodings."""
    concept = Concept("a man", "a man embedding:narrow", "a man")
    with torch.inference_mode():
        trained = train_text_encoder(flux, EncoderRecipe(concepts=(concept,), steps=1, rank=1), "narrow")
    of_clip = {name for path, name in encoder_layer_names(flux).items() if path.startswith("clip_l.")}
    assert trained.slider.layers.keys() and trained.slider.layers.keys() <= of_clip
    assert any("t5xxl cannot tell the ends" in each for each in trained.warnings)


def test_the_nodes_for_words_refuse_them_too(pocket):
    model, clip, _ = pocket
    concept = (Concept(PORTRAIT, "quixotic", "unheard"),)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="nothing to learn"):
            TrainSlider.execute(model, clip, concept, {"samples": torch.zeros(1, 8, 8, 8)}, "none", steps=1)
        with pytest.raises(ValueError, match="nothing to learn"):
            AuditionSlider.execute(model, clip, concept, 1.0, 0.0, 1.0, 0.0)


def test_a_training_on_equal_encodings_is_refused_whoever_has_made_them(pocket):
    model, clip, _ = pocket
    recipe = TextualRecipe(concepts=(Concept(PORTRAIT, "old", "young"),), steps=1)
    with torch.inference_mode():
        (encoding,) = encode_prompts(clip, [PORTRAIT]).values()
        with pytest.raises(ValueError, match="'old' and 'young' have the same encoding"):
            train_textual(model, dict.fromkeys(recipe.prompts(), encoding), recipe, torch.zeros(1, 8, 8, 8), "none")
