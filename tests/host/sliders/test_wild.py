"""Files of every trainer in the wild: the weight of the model that each key means, and what is added to it."""

import json
from functools import cache

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.sd
import comfy.sdxl_clip
import pytest
import torch
from comfy.supported_models_base import ClipTarget
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.comfy_host.text_encoders import apply_to_clip
from concept_sliders.comfy_host.weight_adapters import ComfyPatch
from concept_sliders.nodes.converting import ConvertSlider
from concept_sliders.sliders.formats.conventions import CONVENTIONS
from concept_sliders.sliders.formats.slider_files import load_slider, read_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import CLOSE, STRENGTH, Subject
from concept_sliders.tests.support.tiny import difference
from concept_sliders.tests.support.tiny_families.unets import UNETS
from concept_sliders.tests.support.wild import KOHYA, LAYOUTS, LINEAR, PEFT, SD1, dotted
from safetensors.torch import load_file, save_file

CASES = [(name, ending) for name, layout in LAYOUTS.items() for ending in layout.endings]


@cache
def model_of(family: str):
    return FAMILIES[family].build()


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    state = model.model.state_dict()
    own = ((key.removeprefix("diffusion_model.").removesuffix(".weight"), value) for key, value in state.items())
    return {key: tuple(value.shape) for key, value in own}


def written(tensors, folder, ending, config=None):
    path = folder / f"adapter_model.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


def changes_in(model, slider) -> dict[str, torch.Tensor]:
    """What the slider adds to each weight of the model, by the weight's name."""
    match, found = match_slider(model, slider), {}
    assert match.unmatched == ()
    for path, changes in match.layers.items():
        module = model.model.get_submodule(path)
        for change in changes:
            if isinstance(change, ComfyPatch):
                (added,) = change.multiplied(module, path).differences.values()
            else:
                added = (change.up.float().flatten(1) @ change.down.float().flatten(1)).reshape(module.weight.shape)
            found[path] = found.get(path, 0) + added
    return {path.removeprefix("diffusion_model."): added for path, added in found.items()}


@pytest.mark.parametrize(("name", "ending"), CASES)
def test_every_key_changes_the_weight_it_means(name, ending, tmp_path):
    layout = LAYOUTS[name]
    model = model_of(layout.family)
    tensors, expected = layout.tensors(shapes_of(model))
    path = written(tensors, tmp_path, ending, layout.config)
    slider, report = read_slider(path)
    found = changes_in(model, slider)
    assert found.keys() == expected.keys()
    for weight, change in expected.items():
        assert found[weight].shape == change.shape
        assert difference(found[weight], change) < 1e-5, weight
    stated = layout.config.get("lora_alpha", layout.alpha)
    assert report.alphas == (() if stated is None else (float(stated),))
    assert report.without_alpha == (len(layout.targets) if stated is None else 0)
    assert report.ranks == (layout.rank,)
    # PEFT's own names without its configuration: the scale is a guess, and that is said
    guessed = not layout.config and any("base_model.model." in key for key in layout.targets)
    assert [note.partition(",")[0] for note in report.notes] == ["its alpha is not known"] * guessed


# of files in the wild, alphas of their own among them; named adapters of PEFT and its settings are read alike
WILD = [name for name in LAYOUTS if name not in ("raw PEFT, rank-stabilised", "raw PEFT, named adapter")]
# The stock loader knows no names of diffusers for them, so that no file has these
OWN_NAMES_ONLY = ("Wan 2.1 image to video",)


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        (name, convention)
        for name in WILD
        for convention in CONVENTIONS[1:]
        if convention != "diffusers" or LAYOUTS[name].family not in OWN_NAMES_ONLY
    ],
)
def test_files_of_every_trainer_in_every_convention(name, convention, tmp_path, loras):
    """The converted file changes the weights that the trainer's means, read back here and by the stock loader.

    Of diffusers' UNets the stock loader does not know the attention layers as diffusers writes them.
    """
    layout = LAYOUTS[name]
    model = model_of(layout.family)
    tensors, expected = layout.tensors(shapes_of(model))
    given = load_slider(written(tensors, tmp_path, "safetensors", layout.config))
    _, file = ConvertSlider.execute(Stack.of(given), convention, "out", "float32", model).args
    changes = changes_in(model, load_slider(loras / file))
    assert changes.keys() == expected.keys()
    stock, _ = comfy.sd.load_lora_for_models(model, None, load_file(loras / file), 1.0, 0.0)
    hidden = convention == "diffusers" and layout.family in UNETS
    known = {weight for weight in expected if not (hidden and ".attn" in weight)}
    assert stock.patches.keys() == {f"diffusion_model.{weight}.weight" for weight in known}
    for weight, change in expected.items():
        assert difference(changes[weight], change) < 1e-5, weight
    for weight in known:
        key = f"diffusion_model.{weight}.weight"
        own = model.model.get_parameter(key)
        patched = comfy.lora.calculate_weight(stock.patches[key], own.clone(), key)
        assert difference(patched - own, expected[weight]) < 1e-4, weight


MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.default.weight", "magnitude")


@pytest.mark.parametrize("ending", MAGNITUDES)
def test_magnitudes_of_peft_and_ai_toolkit(ending, tmp_path):
    """W' = W + s (m V / |V| - W), V = W + BA, |V| of each output's weights; at other strengths than 1 too."""
    model = model_of("SD 1")
    names = {name: target for name, target in SD1.items() if ".to_" in name or name.endswith("conv1")}
    layout = LAYOUTS["raw PEFT, named adapter"]
    layout = type(layout)("SD 1", dotted(names, "base_model.model."), PEFT, 4, None, 2.0, config=layout.config)
    tensors, products = layout.tensors(shapes_of(model))
    turned, generator = {}, torch.Generator().manual_seed(1)
    for name, target in layout.targets.items():
        weight = model.model.get_submodule(f"diffusion_model.{target}").weight
        magnitudes = 1 + torch.rand(len(weight), generator=generator)
        tensors[f"{name}.{ending}"] = magnitudes
        whole = weight + products[target].view_as(weight)
        norms = torch.stack([output.norm() for output in whole])
        turned[target] = whole * (magnitudes / norms).view(-1, *(1 for _ in weight.shape[1:])) - weight
    slider = load_slider(written(tensors, tmp_path, "safetensors", {**layout.config, "use_dora": True}))
    assert slider.rank == 4
    for strength in (1.0, -0.5, 2.0):
        found = match_slider(model, slider).layers
        assert found.keys() == {f"diffusion_model.{target}" for target in turned}
        for target, expected in turned.items():
            path = f"diffusion_model.{target}"
            own, (change,) = model.model.get_submodule(path).weight.detach(), found[path]
            assert difference(change.changed(own.clone(), strength, path) - own, strength * expected) < 1e-4


# USO's layers, with their outputs and inputs
USO = {
    "double_blocks.0.processor.qkv_lora1": (192, 64),
    "double_blocks.0.processor.proj_lora1": (64, 64),
    "double_blocks.0.processor.qkv_lora2": (192, 64),
    "double_blocks.0.processor.proj_lora2": (64, 64),
    "single_blocks.0.processor.qkv_lora": (192, 64),
    "single_blocks.0.processor.proj_lora": (64, 320),
}
# Layers of blocks that the tiny model has not, by which the stock loader knows such a file
USO_MARKS = {"double_blocks.18.processor.qkv_lora2": (192, 64), "single_blocks.37.processor.qkv_lora": (192, 64)}


@pytest.mark.parametrize("layer", USO)
def test_uso_files_act_as_in_the_stock_loader(layer, tmp_path):
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, (rows, inner) in ({layer: USO[layer]} | USO_MARKS).items():
        tensors[f"{name}.down.weight"] = torch.randn(4, inner, generator=generator)
        tensors[f"{name}.up.weight"] = 0.2 * torch.randn(rows, 4, generator=generator)
    subject = Subject("Flux", tmp_path)
    slider = load_slider(written(tensors, tmp_path, "safetensors"))
    expected = subject.stock(tensors, steps=1)
    assert difference(subject.acting(Stack.of(slider, STRENGTH), steps=1), expected) < CLOSE
    assert difference(expected, subject.sampled(subject.model, steps=1)) > 1e-2


def test_control_loras_of_flux_are_refused_by_name(tmp_path):
    """The stock loader replaces norms with them, and widens the layer that takes the latent."""
    norm = "single_blocks.0.norm.key_norm.scale"
    tensors = {
        "img_in.lora_A.weight": torch.ones(4, 32),
        "img_in.lora_B.weight": torch.ones(64, 4),
        "img_in.lora_B.bias": torch.ones(64),
        norm: torch.ones(32),
    }
    assert "diffusion_model.img_in.reshape_weight" in comfy.lora_convert.convert_lora(tensors)
    with pytest.raises(ValueError, match="control LoRA for Flux"):
        load_slider(written(tensors, tmp_path, "safetensors"))


SLIM = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
LAYER = "text_model.encoder.layers.1"
TEXT = {
    "Text Slider": ("text_encoder.", "clip_l", LINEAR, None),
    "Text Slider, second encoder": ("text_encoder_2.", "clip_g", LINEAR, None),
    "diffusers with PEFT": ("text_encoder_2.", "clip_g", PEFT, None),
    "raw PEFT": ("base_model.model.", "clip_l", PEFT, 8.0),
    "kohya": ("lora_te1_", "clip_l", KOHYA, 2.0),
    "kohya, second encoder": ("lora_te2_", "clip_g", KOHYA, 2.0),
}


@pytest.fixture(scope="module")
def encoders():
    """A tiny pair of text encoders of SDXL."""
    target = ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    cpu = torch.device("cpu")
    options = {"clip_l_model_config": SLIM, "clip_g_model_config": SLIM, "load_device": cpu, "offload_device": cpu}
    clip = comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32}, disable_dynamic=True)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0.0, 0.2)
    return clip


def loaded_weights(clip) -> dict[str, torch.Tensor]:
    """The encoders' weights as ComfyUI loads them for use."""
    comfy.model_management.load_models_gpu([clip.patcher])
    return {key: value.clone() for key, value in clip.cond_stage_model.state_dict().items()}


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_encoder_layers_change_the_weight_they_mean(name, ending, encoders, tmp_path):
    prefix, encoder, ends, alpha = TEXT[name]
    parts = {"self_attn.k_proj": (32, 32), "self_attn.out_proj": (32, 32), "mlp.fc1": (64, 32)}
    tensors, expected, scale = {}, {}, 1.0 if alpha is None else alpha / 4
    for part, (rows, inner) in parts.items():
        down, up = torch.randn(4, inner), torch.randn(rows, 4)
        layer = f"{prefix}{LAYER}.{part}" if "." in prefix else f"{prefix}{LAYER}.{part}".replace(".", "_")
        tensors |= {f"{layer}.{ends[0]}": down, f"{layer}.{ends[1]}": up}
        if ends is KOHYA:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
        expected[f"{encoder}.transformer.{LAYER}.{part}.weight"] = scale * (up @ down)
    config = {"r": 4, "lora_alpha": alpha} if name == "raw PEFT" else None
    slider = load_slider(written(tensors, tmp_path, ending, config))
    assert not slider.model_layers
    before, after = (loaded_weights(clip) for clip in (encoders, apply_to_clip(encoders, Stack.of(slider, 0.5))))
    assert {key for key in before if not torch.equal(before[key], after[key])} == expected.keys()
    for key, change in expected.items():
        assert difference(after[key] - before[key], 0.5 * change) < 1e-4
