"""Which layers of a model the names in files can stand for."""

import re

import pytest
from concept_sliders.sliders.formats.layer_index import (
    LayerIndex,
    common_fronts,
    encoder_paths,
    joined,
    model_paths,
)
from hypothesis import given
from hypothesis import strategies as st

Q = ("qkv", (0, 0, 8))  # rows of a joint weight
KEY_MAP = {
    "diffusion_model.layers.0.attention.qkv": "qkv",
    "lora_unet_layers_0_attention_qkv": "qkv",
    "transformer.layers.0.attention.to_q": Q,
    "transformer.layers.0.attention.to_out.0": "out",
    "diffusion_model.layers.0.attention.out": "out",
    "diffusion_model.refiner.layers.0.ff_in": "refiner",
    "diffusion_model.img_in": "img_in",
    "diffusion_model.transformer_blocks.0.ff_in": "ff",
}
INDEX = LayerIndex(KEY_MAP, model_paths)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lora_unet_layers_0_attention_to_q", Q),
        ("lora_unet_layers_0_attention_to_out_0", "out"),
        ("lora_unet_layers_0_attention_to_out", "out"),
        ("lora_unet_layers_0_attention_to_q_", Q),
        ("lora_unet__layers_0_attention_to_q", Q),
        ("lora_unet__orig_mod_layers_0_attention_to_q", Q),
        ("lora_transformer_layers_0_attention_to_q", Q),
        ("lycoris_layers_0_attention_to_q", Q),
        ("layers.0.attention.to_q", Q),
        ("layers.0._orig_mod.attention.processor.to_q", Q),
        ("transformer.base_model.model.layers.0.attention.to_q", Q),
        ("base_model.model.transformer.layers.0.attention.to_q.weight", Q),
        ("pipe.dit.layers.0.attention.to_q", Q),
        ("module.model.diffusion_model.layers.0.attention.qkv", "qkv"),
        ("lora_unet.layers_0.attention_to_q", Q),
        ("model.img_in.", "img_in"),
        ("lora_unet_transformer_blocks_0_ff_in", "ff"),
        ("lora_transformer_transformer_blocks_0_ff_in", "ff"),
        ("lora_transformer_blocks_0_ff_in", "ff"),  # "lora_" in front
    ],
)
def test_wrappers_and_joiners(name, target):
    assert INDEX.readings(name) == (target,)


@pytest.mark.parametrize(
    "name",
    [
        # more than a wrapper: parts of a name are no name
        "lora_unet_single_transformer_blocks_0_ff_in",
        "single_transformer_blocks.0.ff_in",
        "lora_unet_context_refiner_layers_0_ff_in",
        "other.layers.0.attention.to_q",
        "lora_unet_0_attention_to_q",
        "lora_unet_my_img_in",
        "layers.1.attention.to_q",
        "",
    ],
)
def test_other_names_are_other_layers(name):
    assert INDEX.readings(name) == ()


def test_comfyui_s_own_reading_is_the_only_one():
    key_map = {"transformer.a.0.b": "one", "diffusion_model.transformer.a.0.b": "two", "diffusion_model.a.0.b": "one"}
    index = LayerIndex(key_map, model_paths)
    assert index.readings("transformer.a.0.b") == ("one",)
    assert index.readings("pipe.transformer.a.0.b") == ("two", "one")  # the wrapper of one, or the name of the other


def test_ends_of_paths_are_read_from_a_block_on():
    assert INDEX.readings_of_ends("unet.layers.0.ff_in") == ("refiner",)
    assert INDEX.readings_of_ends("0.ff_in") == INDEX.readings_of_ends("ff_in") == ()


@pytest.mark.parametrize(
    ("names", "fronts"),
    [
        (["a.b.layers.0.x", "a.b.layers.1.x"], ["a.", "a.b."]),
        (["a.layers.0.x", "b.layers.0.x"], []),
        (["layers.0.x"], []),
        (["a.0.layers.0.x"], []),
        (["lora_unet_a"], []),
    ],
)
def test_what_all_names_have_in_front(names, fronts):
    assert common_fronts(names) == fronts


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lora_te_text_model_x", "l"),
        ("lora_te1_text_model_x", "l"),
        ("text_encoder.text_model.x", "l"),
        ("text_encoder.base_model.model.text_model.x", "l"),
        ("lora_te1.text_model_x_", "l"),
        ("text_encoder_2.text_model.x", "g"),
        ("lora_te2_text_model_x", "g"),
        ("lora_te3_text_model_x", None),
        ("text_encoder_2.text_model.y", None),
    ],
)
def test_encoders_are_told_apart(name, target):
    key_map = {"lora_te_text_model_x": "l", "text_encoder.text_model.x": "l", "lora_te2_text_model_x": "g"}
    assert LayerIndex(key_map, encoder_paths).readings(name) == (() if target is None else (target,))


WORD = st.text(alphabet="abcxyz", min_size=1, max_size=4)


@given(st.lists(WORD, min_size=1, max_size=5), st.lists(st.sampled_from([".", "_", "__"]), min_size=5, max_size=5))
def test_any_joiners_are_one_path(words, joiners):
    path = "".join(word + joiner for word, joiner in zip(words, joiners, strict=False))
    assert joined(path) == "_".join(words)
    assert not re.search(r"^_|__|_$|\.", joined(path))
