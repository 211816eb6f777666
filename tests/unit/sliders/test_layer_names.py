"""Layer names: what the files in the wild say, and what they are known by."""

import pytest
import torch
from concept_sliders.sliders.adapters.kind import ALPHA, DOWN, PEFT_BIAS, PEFT_MAGNITUDE, UP
from concept_sliders.sliders.formats.conventions import name_in
from concept_sliders.sliders.formats.diffusers_names import dotted, encoder_in_diffusers
from concept_sliders.sliders.formats.keys import split_key
from concept_sliders.sliders.formats.kohya_names import encoder_in_kohya
from concept_sliders.sliders.formats.layer_names import comfyui_names
from concept_sliders.sliders.formats.model_family import UNKNOWN, candidates, family_of
from concept_sliders.sliders.formats.slider_files import read_slider
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

U = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1"
D = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        # concept sliders, LECO, SliderSpace, kohya: as they are
        (f"{U}_to_q", None),
        ("lora_unet_down_blocks_1_resnets_0_time_emb_proj", None),
        ("lora_unet_down_blocks_1_downsamplers_0_conv", None),
        ("lora_unet_input_blocks_4_1_proj_in", None),
        ("lora_unet_double_blocks_0_img_attn_qkv", None),
        # Flux of the public code
        ("lora_unet_transformer_blocks_0_attn_to_q", "lora_transformer_transformer_blocks_0_attn_to_q"),
        (
            "lora_unet_single_transformer_blocks_37_attn_to_q",
            "lora_transformer_single_transformer_blocks_37_attn_to_q",
        ),
        # the same spelling for Qwen-Image and LTX, which is known
        ("lora_unet_transformer_blocks_0_img_mlp_net_2", None),
        ("lora_unet_transformer_blocks_0_attn1_to_q", None),
        ("lora_unet_transformer_blocks_59_attn_to_q", None),
        # ai-toolkit
        ("transformer.transformer_blocks.0.attn.to_q", None),
        ("diffusion_model.layers.0.attention.to_q", None),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_attn.qkv"),
        ("lora_unet__blocks_0_cross_attn_k", "lora_unet_blocks_0_cross_attn_k"),
        # diffusers and PEFT, UNets
        (f"unet.{D}.to_q", f"{U}_to_q"),
        (f"unet.{D}.to_out.0", f"{U}_to_out_0"),
        (f"unet.{D}.processor.to_out", f"{U}_to_out_0"),
        (f"{D}.processor.to_k", f"{U}_to_k"),
        (f"base_model.model.{D}.to_v", f"{U}_to_v"),
        (f"unet.base_model.model.{D}.to_v", f"{U}_to_v"),
        ("unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
        ("unet.conv_in", "lora_unet_conv_in"),
        ("unet.add_embedding.linear_1", "lora_unet_add_embedding_linear_1"),
        # PEFT, transformers
        ("base_model.model.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q"),
        ("base_model.model.blocks.0.self_attn.q", "diffusion_model.blocks.0.self_attn.q"),
        ("base_model.model.transformer.transformer_blocks.0.ff", "transformer.transformer_blocks.0.ff"),
        ("base_model.model.layers.0.self_attn.q_proj", None),
        # text encoders
        ("text_encoder.text_model.encoder.layers.0.self_attn.k_proj", None),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", None),
        (
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
            "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
        ),
        ("text_encoder_2.text_projection", "lora_te2_text_projection"),
        (
            "base_model.model.text_model.encoder.layers.0.mlp.fc1",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ),
    ],
)
def test_known_names(name, known):
    assert comfyui_names([name]) == {name: known or name}


def test_a_files_names_are_read_together():
    double = "lora_unet_transformer_blocks_0_attn_to_q"
    single = "lora_unet_single_transformer_blocks_0_attn_to_q"
    out = "lora_unet_norm_out_linear"
    assert comfyui_names([double, single])[double] == "lora_transformer_transformer_blocks_0_attn_to_q"
    assert comfyui_names([out, single])[out] == "lora_transformer_norm_out_linear"
    assert comfyui_names([out])[out] == out
    assert comfyui_names([double, "lora_unet_transformer_blocks_0_txt_mlp_net_2"])[double] == double
    peft = ["base_model.model.x_embedder", "base_model.model.transformer_blocks.0.attn.to_q"]
    assert comfyui_names(peft)[peft[0]] == "transformer.x_embedder"
    assert comfyui_names(peft[:1])[peft[0]] == "diffusion_model.x_embedder"


def test_the_second_encoder_of_a_peft_folder():
    name = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
    assert comfyui_names([name], "text_encoder_2")[name] == "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"


@given(st.lists(st.text(min_size=1, max_size=60), max_size=5, unique=True))
def test_names_that_mean_nothing_stay(names):
    assert set(comfyui_names(names)) == set(names)
    assert all(comfyui_names([name]) == {name: name} for name in names if name.isalnum())


@pytest.mark.parametrize(
    ("key", "name", "part"),
    [
        ("x.lora_down.weight", "x", DOWN),
        ("x.lora_A.weight", "x", DOWN),
        ("x.lora_B.default.weight", "x", UP),
        ("x.lora_B.weight_less.weight", "x", UP),
        ("x.lora_A", "x", DOWN),
        ("x.lora.up.weight", "x", UP),
        ("x_lora.up.weight", "x", UP),
        ("x.lora_linear_layer.down.weight", "x", DOWN),
        ("x.lora_B.bias", "x", PEFT_BIAS),
        ("x.lora_magnitude_vector", "x", PEFT_MAGNITUDE),
        ("x.lora_magnitude_vector.default.weight", "x", PEFT_MAGNITUDE),
        ("x.magnitude", "x", PEFT_MAGNITUDE),
        ("x.alpha", "x", ALPHA),
        ("a.b.hada_w1_a", "a.b", "hada_w1_a"),
        ("a.a1.weight", "a", "a1.weight"),
        ("x.lora_A.bias", "", ""),
        ("x.weight", "", ""),
        (".alpha", "", ""),
        ("alpha", "", ""),
    ],
)
def test_keys(key, name, part):
    assert split_key(key) == (name, part)


def low_rank(name, rank=4, out=6, inner=5):
    return {f"{name}.lora_A.weight": torch.ones(rank, inner), f"{name}.lora_B.weight": torch.ones(out, rank)}


def test_a_report(tmp_path):
    tensors = {
        **{key: value.half() for key, value in low_rank("lora_unet_mid_block_attentions_0_proj_in").items()},
        **low_rank(f"unet.{D}.to_q", rank=2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": torch.ones(4, 1),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_b": torch.ones(1, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w2_a": torch.ones(4, 1),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w2_b": torch.ones(1, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    _, report = read_slider(tmp_path / "x.safetensors")
    assert dict(report.kinds) == {"LoRA": 2, "LoHa": 1}
    assert (report.ranks, report.alphas, report.without_alpha) == ((1, 2, 4), (1.0, 4.0), 1)
    assert (report.dtypes, len(report.renamed)) == (("float16", "float32"), 1)


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ([f"{U}_to_q", "lora_unet_down_blocks_3_resnets_0_conv1"], "SD 1 or 2"),
        (["lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn1_to_q"], "SDXL"),
        ([f"{U}_to_q"], "a UNet (SD 1, SD 2 or SDXL)"),
        (["lora_transformer_single_transformer_blocks_0_attn_to_q"], "Flux, Flux 2, Chroma or AuraFlow"),
        (["transformer.single_transformer_blocks.0.norm.linear"], "Flux"),
        (["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"], "Flux 2"),
        (["lora_unet_double_blocks_3_img_attn_qkv"], "Flux, Flux 2, Chroma, HunyuanVideo or HunyuanImage"),
        (["lora_unet_double_blocks_19_img_attn_qkv"], "HunyuanVideo or HunyuanImage"),
        (["diffusion_model.joint_blocks.0.x_block.attn.qkv"], "SD3"),
        (["diffusion_model.transformer_blocks.0.img_mlp.net.2"], "Qwen-Image or MageFlow"),
        (["diffusion_model.transformer_blocks.59.img_mlp.net.2"], "Qwen-Image"),
        (["diffusion_model.layers.0.attention.to_q"], "Z-Image or Lumina 2"),
        (["diffusion_model.layers.0.attention.qkv"], "Z-Image, Lumina 2 or Ideogram 4"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], "SDXL or SD3"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1", f"{U}_to_q"], "SDXL"),
        (["diffusion_model.blocks.0.self_attn.q"], "Wan"),
        (["a"], UNKNOWN),
    ],
)
def test_families(names, family):
    assert family_of(names) == family
    assert all(candidates(family))


DOTTED = [
    f"{D}.to_out.0",
    "mid_block.resnets.1.time_emb_proj",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.0.resnets.2.conv_shortcut",
    "down_blocks.0.attentions.1.proj_in",
    "add_embedding.linear_2",
    "conv_in",
    "single_transformer_blocks.3.proj_mlp",
    "transformer_blocks.3.ff_context.net.0.proj",
    "transformer_blocks.3.norm1_context.linear",
    "transformer_blocks.3.attn.add_q_proj",
    "time_text_embed.guidance_embedder.linear_1",
]


@pytest.mark.parametrize("name", DOTTED)
def test_dots_come_back(name):
    assert dotted(name.replace(".", "_")) == name


@given(st.text(alphabet="abcdotqkv_0123", max_size=30))
def test_dots_are_never_guessed(text):
    found = dotted(text)
    assert found is None or found.replace(".", "_") == text


def test_names_of_encoders():
    first, second = (f"text_encoder{n}.text_model.encoder.layers.11.self_attn.out_proj" for n in ("", "_2"))
    assert encoder_in_kohya(first, False) == "lora_te_text_model_encoder_layers_11_self_attn_out_proj"
    assert encoder_in_kohya(first, True) == "lora_te1_text_model_encoder_layers_11_self_attn_out_proj"
    assert encoder_in_kohya("blocks.0", True) is None
    t5 = "encoder_block_0_layer_0_SelfAttention_q"
    for start in ("text_encoder_2.", "lora_te2_", "lora_te3_"):
        assert encoder_in_kohya(start + t5, True) == f"lora_te3_{t5}"
    assert encoder_in_kohya(f"lora_te1_{t5}", False) == f"lora_te1_{t5}"  # a T5 alone
    for name in (first, second):
        assert encoder_in_diffusers(encoder_in_kohya(name, True)) == name
        assert encoder_in_diffusers(name) == name
    assert encoder_in_diffusers("lora_te2_encoder_block_0_layer_0_SelfAttention_q") is None


@pytest.mark.parametrize(
    ("name", "convention", "new"),
    [
        (f"{U}_to_q", "as it is", f"{U}_to_q"),
        (f"{U}_to_q", "kohya", f"{U}_to_q"),
        (f"{U}_to_out_0", "diffusers", f"unet.{D}.to_out.0"),
        ("lora_unet_input_blocks_4_1_proj_in", "diffusers", None),
        (
            "lora_transformer_transformer_blocks_0_attn_to_q",
            "diffusers",
            "transformer.transformer_blocks.0.attn.to_q",
        ),
        ("lora_unet_blocks_0_cross_attn_k", "diffusion_model.", None),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "kohya", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("diffusion_model.layers.0.attention.to_q", "kohya", None),
        ("diffusion_model.layers.0.attention.to_q", "diffusion_model.", "diffusion_model.layers.0.attention.to_q"),
        ("transformer.x_embedder", "diffusers", "transformer.x_embedder"),
        ("transformer.x_embedder", "kohya", None),
    ],
)
def test_conventions_by_the_name_alone(name, convention, new):
    assert name_in(name, convention) == new
