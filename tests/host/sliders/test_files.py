"""Slider files of every layout in the wild, against ComfyUI: its key maps, and what it makes of them."""

import json

import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import pytest
import torch
from comfy.supported_models_base import ClipTarget
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.layer_conversion import converted_layers
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.sliders.formats.conversion import WeightSlice
from concept_sliders.sliders.formats.slider_files import load_slider, read_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import change_by_comfyui, unet_keys
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_names import file_named
from concept_sliders.tests.support.tiny import difference, sample, tiny_model
from safetensors.torch import save_file

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TARGET = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_{}.weight"
# One file for each way of writing the queries of SD1's first attention: (down key, up key, alpha key or None)
UNET_LAYOUTS = {
    "kohya": ("lora_unet_{u}_to_q.lora_down.weight", "lora_unet_{u}_to_q.lora_up.weight", "lora_unet_{u}_to_q.alpha"),
    "PEFT": ("unet.{d}.to_q.lora_A.weight", "unet.{d}.to_q.lora_B.weight", None),
    "diffusers": ("unet.{d}.to_q.lora.down.weight", "unet.{d}.to_q.lora.up.weight", None),
    "processor": ("unet.{d}.processor.to_q_lora.down.weight", "unet.{d}.processor.to_q_lora.up.weight", None),
    "old processor": ("{d}.processor.to_q_lora.down.weight", "{d}.processor.to_q_lora.up.weight", None),
    "raw PEFT": ("base_model.model.{d}.to_q.lora_A.weight", "base_model.model.{d}.to_q.lora_B.weight", None),
    "named": ("base_model.model.{d}.to_q.lora_A.age.weight", "base_model.model.{d}.to_q.lora_B.age.weight", None),
    "original names": (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
        None,
    ),
}


@pytest.mark.parametrize("layout", UNET_LAYOUTS)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_unet_layouts_change_the_weight_they_name(layout, ending, tmp_path):
    torch.manual_seed(0)
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    keys = [k and k.format(d=ATTENTION, u=ATTENTION.replace(".", "_")) for k in UNET_LAYOUTS[layout]]
    tensors = {keys[0]: down, keys[1]: up, **({keys[2]: torch.tensor(1.0)} if keys[2] else {})}
    path = tmp_path / f"adapter_model.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save({"state_dict": tensors}, path)
    model = tiny_model("SD15")
    changed = change_by_comfyui(load_slider(path), model, unet_keys(model))
    assert set(changed) == {TARGET.format("q")}
    expected = (up @ down) * (0.25 if keys[2] else 1.0)
    assert torch.allclose(changed[TARGET.format("q")], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
def test_every_diffusers_name_of_a_unet_is_known(family, tmp_path):
    """All layers of ComfyUI's own map, in the three ways in which diffusers has written their names."""
    model = tiny_model(family)
    key_map, shapes = unet_keys(model), {k: v.shape for k, v in model.model.state_dict().items()}
    theirs = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    wanted = {}
    for name, own in theirs.items():
        key = f"diffusion_model.{own}"
        usual = name.endswith(".weight") and "class_embedding" not in name
        if usual and key in shapes and len(shapes[key]) > 1:
            wanted[name.removesuffix(".weight")] = key
    assert len(wanted) > 50
    for prefix, processor, middle in (
        ("unet.", False, ".lora_A"),
        ("unet.", False, ".lora.down"),
        ("base_model.model.", False, ".lora_A"),
        ("unet.", True, "_lora.down"),
    ):
        tensors, targets = {}, {}
        for name, key in wanted.items():
            if processor and "attn" not in name:
                continue
            spelled = prefix + (
                name.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out") if processor else name
            )
            out, *inner = shapes[key]
            tensors[f"{spelled}{middle}.weight"] = torch.ones(2, *inner)
            other = middle.replace("lora_A", "lora_B").replace("down", "up")
            tensors[f"{spelled}{other}.weight"] = torch.ones(out, 2, *(1 for _ in inner[1:]))
            targets[name] = key
        save_file(tensors, tmp_path / "x.safetensors")
        slider = load_slider(tmp_path / "x.safetensors")
        assert {key_map[name] for name in slider.layers} == set(targets.values())
        assert len(slider.layers) == len(targets)


FLUX_LAYERS = {
    "transformer_blocks_0_attn_to_q": ("diffusion_model.double_blocks.0.img_attn.qkv.weight", 0, 64),
    "transformer_blocks_0_attn_add_v_proj": ("diffusion_model.double_blocks.0.txt_attn.qkv.weight", 128, 64),
    "transformer_blocks_0_attn_to_out_0": ("diffusion_model.double_blocks.0.img_attn.proj.weight", 0, 64),
    "single_transformer_blocks_0_attn_to_k": ("diffusion_model.single_blocks.0.linear1.weight", 64, 64),
    "single_transformer_blocks_0_proj_out": ("diffusion_model.single_blocks.0.linear2.weight", 0, 64),
}
DOTS = {
    "transformer_blocks_0_attn_to_q": "transformer_blocks.0.attn.to_q",
    "transformer_blocks_0_attn_add_v_proj": "transformer_blocks.0.attn.add_v_proj",
    "transformer_blocks_0_attn_to_out_0": "transformer_blocks.0.attn.to_out.0",
    "single_transformer_blocks_0_attn_to_k": "single_transformer_blocks.0.attn.to_k",
    "single_transformer_blocks_0_proj_out": "single_transformer_blocks.0.proj_out",
}


@pytest.mark.parametrize("layout", ["public code", "ai-toolkit", "raw PEFT"])
def test_flux_layouts(layout, tmp_path):
    model = tiny_model("Flux")
    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    torch.manual_seed(0)
    tensors, expected = {}, {}
    for name, (key, start, length) in FLUX_LAYERS.items():
        down, up = torch.randn(4, shapes[key][1]), torch.randn(length, 4)
        if layout == "public code":
            ends, spelled = ("lora_down.weight", "lora_up.weight"), f"lora_unet_{name}"
            tensors[f"{spelled}.alpha"] = torch.tensor(1.0)
        else:
            prefix = "transformer." if layout == "ai-toolkit" else "base_model.model."
            ends, spelled = ("lora_A.weight", "lora_B.weight"), prefix + DOTS[name]
        tensors |= {f"{spelled}.{ends[0]}": down, f"{spelled}.{ends[1]}": up}
        expected.setdefault(key, torch.zeros(shapes[key]))[start : start + length] += up @ down
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if layout == "raw PEFT":
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 1}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    slider = load_slider(tmp_path / "adapter_model.safetensors")
    changed = change_by_comfyui(slider, model, unet_keys(model))
    scale = 1.0 if layout == "ai-toolkit" else 0.25
    assert changed.keys() == expected.keys()
    for key, change in expected.items():
        assert torch.allclose(changed[key], scale * change, atol=1e-4)
    assert difference(sample(apply_sliders(model, Stack.of(slider)), "Flux"), sample(model, "Flux")) > 1e-2


@pytest.mark.parametrize("family", ["QwenImage", "ZImage"])
def test_names_of_families_too_large_to_run(family, tmp_path):
    """Their keys as ai-toolkit and kohya's scripts write them, on models without memory."""
    config_class, config, names, raw = META[family]
    unet = config_class(config)
    model = unet.get_model({}, device=torch.device("meta"))
    key_map = comfy.lora.model_lora_keys_unet(model, {})
    for spelled in (*names, *raw):
        ends = ("lora_A", "lora_B") if "." in spelled else ("lora_down", "lora_up")
        tensors = {f"{spelled}.{ends[0]}.weight": torch.ones(2, 8), f"{spelled}.{ends[1]}.weight": torch.ones(8, 2)}
        save_file(tensors, tmp_path / "x.safetensors")
        (name,) = load_slider(tmp_path / "x.safetensors").layers
        assert name in key_map, f"{spelled} is known as {name}"
        assert name == spelled or spelled in raw


@pytest.mark.parametrize("family", ["Qwen-Image", "SD3", "MageFlow"])
def test_early_attention_layers_are_not_flux_because_they_look_like_it(family, tmp_path):
    """kohya's files of other families, with the first blocks' attention alone."""
    model = FAMILIES[family].build()
    keys = unet_keys(model)
    own = {name: target for name, target in keys.items() if name.startswith("lora_unet_") and "_attn_to_" in name}
    if family == "SD3":  # in the spelling of diffusers
        diffusers = {n: t for n, t in keys.items() if n.startswith("lora_transformer_") and "_attn_to_" in n}
        own = {name.replace("lora_transformer_", "lora_unet_"): target for name, target in diffusers.items()}
    own = {name: t for name, t in own.items() if WeightSlice.of(t).key in model.model.state_dict()}
    assert len(own) >= 4
    tensors = file_named(model, ("lora_unet_", 1), own)
    save_file(tensors, tmp_path / "x.safetensors")
    slider = load_slider(tmp_path / "x.safetensors")
    assert all(name.startswith("lora_transformer_") for name in slider.layers)
    assert match_slider(model, slider).unmatched == ()
    names = converted_layers(slider, "diffusion_model.", model)
    assert {WeightSlice.of(keys[name]).key for name in names} == {
        WeightSlice.of(target).key for target in own.values()
    }


META = {
    "QwenImage": (
        comfy.supported_models.QwenImage,
        {"image_model": "qwen_image", "num_layers": 2, "in_channels": 16, "dtype": torch.float32},
        (
            "diffusion_model.transformer_blocks.0.attn.to_q",
            "transformer.transformer_blocks.1.img_mlp.net.2",
            "lora_unet_transformer_blocks_0_img_mlp_net_2",
        ),
        ("base_model.model.transformer_blocks.0.attn.add_k_proj",),
    ),
    "ZImage": (
        comfy.supported_models.ZImage,
        {
            "image_model": "lumina2",
            "n_layers": 2,
            "n_refiner_layers": 1,
            "dim": 64,
            "n_heads": 2,
            "n_kv_heads": 2,
            "in_channels": 16,
            "patch_size": 2,
            "cap_feat_dim": 32,
            "axes_dims": [8, 12, 12],
            "axes_lens": [8, 8, 8],
            "dtype": torch.float32,
        },
        ("diffusion_model.layers.0.attention.to_q", "diffusion_model.layers.1.feed_forward.w1"),
        ("base_model.model.layers.0.attention.to_v",),
    ),
}

SLIM = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def encoders():
    """A tiny pair of text encoders of SDXL."""
    target = ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    cpu = torch.device("cpu")
    options = {"clip_l_model_config": SLIM, "clip_g_model_config": SLIM, "load_device": cpu, "offload_device": cpu}
    return comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32}, disable_dynamic=True)


LINEAR = ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
AB = ".lora_A.weight", ".lora_B.weight"
TEXT_LAYOUTS = {
    "Text Slider": ("text_encoder.text_model.encoder.layers.0.self_attn.k_proj", LINEAR, "clip_l"),
    "Text Slider, second": ("text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj", LINEAR, "clip_g"),
    "PEFT": ("text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj", AB, "clip_g"),
    "raw PEFT": ("base_model.model.text_model.encoder.layers.0.self_attn.k_proj", AB, "clip_l"),
    "kohya": (
        "lora_te2_text_model_encoder_layers_0_self_attn_k_proj",
        (".lora_down.weight", ".lora_up.weight"),
        "clip_g",
    ),
}


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
@pytest.mark.filterwarnings("ignore")
def test_text_encoder_layouts(layout, encoders, tmp_path):
    name, ends, encoder = TEXT_LAYOUTS[layout]
    tensors = {name + ends[0]: torch.randn(4, 32), name + ends[1]: torch.randn(32, 4)}
    unet = {f"unet.{ATTENTION}.to_q{end}": torch.ones(32, 2) if "B" in end else torch.ones(2, 32) for end in AB}
    save_file({**tensors, **unet}, tmp_path / "mixed.safetensors")
    slider, report = read_slider(tmp_path / "mixed.safetensors")
    assert (len(slider.text_layers), len(slider.model_layers)) == (1, 1)
    assert report.without_alpha == 2
    key_map = comfy.lora.model_lora_keys_clip(encoders.cond_stage_model, {})
    (known,) = slider.text_layers
    assert key_map[known] == f"{encoder}.transformer.text_model.encoder.layers.0.self_attn.k_proj.weight"
    change = slider.text_layers[known]
    assert torch.equal(change.up @ change.down, tensors[name + ends[1]] @ tensors[name + ends[0]])
