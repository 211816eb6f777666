"""Convert Slider and Merge Sliders: the same change under other names, and one slider for many."""

import os

import comfy.lora
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.layer_conversion import converted_layers
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_weights import ComfyModelWeights
from concept_sliders.nodes.converting import ConvertSlider, MergeSliders
from concept_sliders.nodes.inverting import SaveInversion
from concept_sliders.nodes.loading import SaveSlider
from concept_sliders.nodes.model_folders import free_path
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.merge_sliders import merged_stack
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support import tiny
from concept_sliders.tests.support.reports import shown, warned
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tiny_model
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from safetensors.torch import load_file, save_file

# Flux's real ratio: only then do the parts that ComfyUI knows make up the whole of its joint weights
WIDE_FLUX = {**tiny.FLUX, "mlp_ratio": 4.0}


@pytest.fixture
def flux(monkeypatch):
    monkeypatch.setitem(tiny.FAMILIES, "Flux", (tiny.FAMILIES["Flux"][0], WIDE_FLUX, 16, 8))
    return tiny_model("Flux")


def same_change(model, family, one: Slider, other: Slider) -> bool:
    first, second = (sample(apply_sliders(model, Stack.of(s)), family) for s in (one, other))
    assert difference(first, sample(model, family)) > 1e-2
    return difference(first, second) < 1e-4


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("convention", ["kohya", "diffusers"])
def test_unets_in_every_convention(family, with_model, convention, loras):
    model = tiny_model(family)
    slider = random_slider(model)
    stack = Stack.of(slider, -0.5)
    if not with_model:  # the layers outside of the blocks have names that need the model
        layers = {name: layer for name, layer in slider.layers.items() if "_blocks_" in name or "mid_block" in name}
        stack = Stack.of(slider := Slider("blocks", layers), -0.5)
    out, file = ConvertSlider.execute(stack, convention, "x", "float32", model if with_model else None).args
    keys = load_file(loras / file).keys()
    assert file == "x.safetensors" and len(out[0].slider.layers) == len(slider.layers)
    if convention == "diffusers":
        assert all(key.startswith("unet.") and ".processor." not in key for key in keys)
        assert not any(key.endswith("alpha") for key in keys)  # to diffusers, none means a scale of 1
        assert any(key.endswith("attn1.to_out.0.lora_B.weight") for key in keys)
    else:
        assert all(key.startswith("lora_unet_") for key in keys)
        assert load_file(loras / file)[next(key for key in keys if key.endswith("alpha"))] == slider.rank
    turned = Slider("turned", {name: layer.scaled(-0.5) for name, layer in slider.layers.items()})
    assert same_change(model, family, turned, load_slider(loras / file))


def test_unets_in_their_own_names_and_back(loras):
    model = tiny_model("SD15")
    slider = random_slider(model)
    _, file = ConvertSlider.execute(Stack.of(slider), "diffusion_model.", "own", "float32", model).args
    own = load_slider(loras / file)
    assert set(own.layers) == set(layer_names(model))
    stock, _ = comfy.sd.load_lora_for_models(model, None, load_file(loras / file), 1.0, 0.0)
    assert difference(sample(stock, "SD15"), sample(apply_sliders(model, Stack.of(slider)), "SD15")) < 1e-4
    _, file = ConvertSlider.execute(Stack.of(own), "kohya", "back", "float32", model).args
    assert load_slider(loras / file).content_hash == slider.content_hash


def public_flux() -> dict[str, torch.Tensor]:
    """Of the public code: the parts of the joint weights, by names that the stock loader does not know."""
    torch.manual_seed(0)
    tensors = {}
    for i, name in enumerate(
        ("transformer_blocks_0_attn_to_q", "transformer_blocks_0_attn_to_v", "transformer_blocks_0_attn_to_out_0",
         "single_transformer_blocks_0_attn_to_k", "single_transformer_blocks_0_proj_mlp", "norm_out_linear")
    ):  # fmt: skip
        out = {"single_transformer_blocks_0_proj_mlp": 256, "norm_out_linear": 128}.get(name, 64)
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2 + i % 2, 64)
        tensors[f"lora_unet_{name}.lora_up.weight"] = 0.1 * torch.randn(out, 2 + i % 2)
    return tensors


def test_parts_of_joint_weights_in_every_convention(flux, loras):
    save_file(public_flux(), loras / "public.safetensors")
    public = load_slider(loras / "public.safetensors")
    assert len(public.layers) == 6
    own_names = {"double_blocks_0_img_attn_qkv", "double_blocks_0_img_attn_proj", "single_blocks_0_linear1",
                 "final_layer_adaLN_modulation_1"}  # fmt: skip
    found = {}
    for convention in ("kohya", "diffusers", "diffusion_model."):
        _, file = ConvertSlider.execute(Stack.of(public), convention, convention, "float32", flux).args
        found[convention] = load_slider(loras / file)
        assert same_change(flux, "Flux", public, found[convention])
    assert set(found["kohya"].layers) == {f"lora_unet_{name}" for name in own_names}
    assert {name.replace(".", "_") for name in found["diffusion_model."].layers} == {
        f"diffusion_model_{name}" for name in own_names
    }
    assert "transformer.transformer_blocks.0.attn.to_q" in found["diffusers"].layers
    stock, _ = comfy.sd.load_lora_for_models(flux, None, load_file(loras / "kohya.safetensors"), 1.0, 0.0)
    assert difference(sample(stock, "Flux"), sample(apply_sliders(flux, Stack.of(public)), "Flux")) < 1e-4


def test_joint_weights_come_apart_again(flux, loras):
    """Widened parts are cut back into what they were, at their own rank."""
    save_file(public_flux(), loras / "public.safetensors")
    public = load_slider(loras / "public.safetensors")
    joint = Slider("joint", converted_layers(public, "kohya", flux))
    back = Slider("back", converted_layers(joint, "diffusers", flux))
    first = converted_layers(public, "diffusers", flux)
    assert back.layers.keys() == first.keys()
    for name, layer in first.items():
        again = back.layers[name]
        assert again.rank == layer.rank
        assert torch.allclose(again.up @ again.down, layer.up @ layer.down, atol=1e-6)


def test_a_whole_joint_weight_becomes_parts(flux):
    whole = random_slider(
        flux, names={"diffusion_model.single_blocks.0.linear1": "diffusion_model.single_blocks.0.linear1"}
    )
    layers = converted_layers(whole, "diffusers", flux)
    assert {name.rpartition(".")[2] for name in layers} == {"to_q", "to_k", "to_v", "proj_mlp"}
    assert same_change(flux, "Flux", whole, Slider("parts", layers))


def test_text_encoders_are_renamed_by_their_names_alone(loras):
    layer = LowRank(torch.ones(2, 3), torch.ones(4, 2))
    names = [f"lora_te{n}_text_model_encoder_layers_0_mlp_fc{n}" for n in (1, 2)]
    slider = Slider("words", dict.fromkeys(names, layer))
    _, file = ConvertSlider.execute(Stack.of(slider), "diffusers", "words", "float16").args
    assert set(load_slider(loras / file).layers) == {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc2",
    }
    _, file = ConvertSlider.execute(Stack.of(load_slider(loras / file)), "kohya", "words", "float16").args
    assert file == "words_2.safetensors"
    assert set(load_slider(loras / file).layers) == set(names)


def test_conversions_that_cannot_be(flux, loras):
    layer = LowRank(torch.ones(2, 64), torch.ones(64, 2))
    named = Slider("a", {"transformer.transformer_blocks.0.attn.to_q": layer})
    with pytest.raises(
        ValueError, match=r"do not tell those in the convention 'kohya' of transformer\S+to_q. Connect the model"
    ):
        ConvertSlider.execute(Stack.of(named), "kohya", "x", "float16")
    strange = Slider("a", {"lora_unet_nowhere": layer})
    with pytest.raises(ValueError, match="Not in the model, so their other names are not known: lora_unet_nowhere"):
        ConvertSlider.execute(Stack.of(strange), "kohya", "x", "float16", flux)
    loha = {f"hada_w{i}_{ab}": torch.ones(64, 64) for i in (1, 2) for ab in "ab"}
    part = Slider("a", {"transformer.transformer_blocks.0.attn.to_q": Adapter(loha)})
    with pytest.raises(
        ValueError,
        match=r"1 of the slider's 1 layers have no name in .*'kohya'.*attn.to_q \(LoHa\). .*in 'diffusers'",
    ):
        ConvertSlider.execute(Stack.of(part), "kohya", "x", "float16", flux)
    with pytest.raises(ValueError, match="is a LoHa change; diffusers reads low-rank products only"):
        ConvertSlider.execute(Stack.of(part), "diffusers", "x", "float16", flux)
    assert list(loras.iterdir()) == []


def test_dora_and_biases_for_diffusers(loras):
    torch.manual_seed(0)
    parts = {"lora_down.weight": torch.randn(2, 5), "lora_up.weight": torch.randn(6, 2), "alpha": torch.tensor(1.0)}
    name = "lora_unet_mid_block_attentions_0_proj_in"
    magnitudes = 1 + torch.rand(6)
    slider = Slider("a", {name: Adapter({**parts, "lora_magnitude_vector": magnitudes, "diff_b": torch.ones(6)})})
    _, file = ConvertSlider.execute(Stack.of(slider), "diffusers", "a", "float32").args
    written = {
        key.removeprefix("unet.mid_block.attentions.0.proj_in."): t for key, t in load_file(loras / file).items()
    }
    assert written.keys() == {"lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector.weight"}
    assert torch.equal(written["lora_B.weight"], 0.5 * parts["lora_up.weight"])
    back = load_slider(loras / file).layers[name].parts
    assert torch.equal(back["lora_magnitude_vector"], magnitudes) and torch.equal(back["diff_b"], torch.ones(6))


@pytest.mark.parametrize(
    ("magnitudes", "convention", "message"),
    [
        ({"dora_scale": torch.ones(6, 1)}, "diffusers", r"attentions.0.proj_in is a DoRA .*another change"),
        ({"lora_magnitude_vector": torch.ones(6)}, "kohya", r"attentions_0_proj_in is a DoRA .*leave out"),
    ],
)
def test_magnitudes_that_would_be_another_change(magnitudes, convention, message, loras):
    parts = {"lora_down.weight": torch.ones(2, 5), "lora_up.weight": torch.ones(6, 2), **magnitudes}
    slider = Slider("a", {"lora_unet_mid_block_attentions_0_proj_in": Adapter(parts)})
    with pytest.raises(ValueError, match=message):
        ConvertSlider.execute(Stack.of(slider), convention, "a", "float32")
    assert list(loras.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..\\x", "a/../../../x.safetensors", "a/", "a\0b"])
@pytest.mark.parametrize("node", ["Save Slider", "Convert Slider"])
def test_names_that_lead_elsewhere(name, node, loras):
    stack = Stack.of(random_slider(tiny_model("SD15")))
    before = sorted(loras.parent.rglob("*"))
    with pytest.raises(ValueError, match=f"leads out of|{node} needs a file name"):
        if node == "Save Slider":
            SaveSlider.execute(stack, name, "float16")
        else:
            ConvertSlider.execute(stack, "kohya", name, "float16")
    assert sorted(loras.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "  "])
def test_without_a_name_a_slider_is_saved_under_its_own(name, loras):
    """The trainer's name and the file's are one, unless told otherwise."""
    layers = random_slider(tiny_model("SD15")).layers
    for own, file in (("my smile", "my smile"), ("my smile", "my smile_2"), ("../age: 1/2", "___age_ 1_2")):
        out = SaveSlider.execute(Stack.of(Slider(own, layers)), name, "float16")
        assert out.args[1] == f"sliders/{file}.safetensors" and shown(out) == [f"saved as {out.args[1]}"]
        assert load_slider(loras / out.args[1]).name == file
    out = ConvertSlider.execute(Stack.of(Slider("laugh", layers)), "kohya", name, "float16")
    assert out.args[1] == "sliders/laugh.safetensors"
    assert free_path(loras, "told otherwise", "Save Slider").stem == "told otherwise"
    with pytest.raises(ValueError, match="Save Slider needs a file name"):
        free_path(loras, name, "Save Slider")


def test_saving_says_that_the_training_was_stopped(loras):
    layers = random_slider(tiny_model("SD15")).layers
    recipe = {**TextualRecipe(concepts=(Concept("a", "b", "c"),), steps=120).as_dict(), "steps_done": 85}
    out = SaveSlider.execute(Stack.of(Slider("age", layers, SliderInfo(recipe=recipe))), "", "float16")
    assert warned(out) == ["stopped at step 85 of 120, saved as sliders/age.safetensors"]


def test_names_below_the_folder(loras):
    for name in ("a/b/c", "a\\b\\c", "..a", "x.safetensors"):
        assert free_path(loras, name, "Save Slider").resolve().is_relative_to(loras)
    (loras / "out").symlink_to(loras.parent)
    with pytest.raises(ValueError, match="leads out of"):
        free_path(loras, "out/x", "Save Slider")


@pytest.mark.parametrize("name", ["x" * 300, "\N{GRINNING FACE}" * 70, "a/" + "x" * 300, "x" * 300 + "/a"])
@pytest.mark.parametrize("node", [SaveSlider, ConvertSlider, SaveInversion])
def test_names_that_are_too_long_are_refused_before_anything_runs(name, node):
    said = node.validate_inputs(name=name)
    assert "is too long for a file in" in said and name.strip("a/")[:20] in said
    assert node.validate_inputs(name="x" * 200) is True is node.validate_inputs()


def test_a_name_as_long_as_the_file_system_takes(loras):
    longest = "x" * (os.pathconf(loras, "PC_NAME_MAX") - len(".safetensors"))
    stack = Stack.of(random_slider(tiny_model("SD15")))
    SaveSlider.execute(stack, longest, "float16")
    assert [file.name for file in loras.iterdir()] == [f"{longest}.safetensors"]
    assert "is too long" in SaveSlider.validate_inputs(name=longest)  # with the number that a second one gets
    with pytest.raises(ValueError, match="is too long for a file in"):
        SaveSlider.execute(stack, longest, "float16")


@pytest.mark.parametrize("rank", [0, 3, 4])
def test_a_merged_slider_does_what_the_stack_does(rank):
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model, 1), 0.5) + Stack.of(random_slider(model, 2), -0.8)
    merged, error = MergeSliders.execute(stack, rank, "both").args
    assert (len(merged), merged[0].slider.rank, merged[0].slider.name) == (1, rank or 4, "both")
    away = difference(sample(apply_sliders(model, merged), "SD15"), sample(apply_sliders(model, stack), "SD15"))
    if rank == 3:
        assert 0.1 < error < 0.7 and away > 1e-3
    else:  # two sliders of rank 2: four are enough
        assert error < 1e-6 and away < 1e-4


def test_gates_and_what_is_known_go_along(loras):
    model = tiny_model("SD15")
    gate, info = Gate(0.3, 1.0), SliderInfo(family="SD15", base_model_hash="h")
    one, two = (Slider(str(i), random_slider(model, i).layers, info) for i in (1, 2))
    stack = (Stack.of(one, 0.5) + Stack.of(two, 2.0)).gated(gate).restricted_to("cond")
    merged, _ = merged_stack(stack, 0, " ")
    placed = merged[0]
    assert (placed.gates, placed.cond_or_uncond, placed.strength) == ((gate,), "cond", (1.0,))
    assert (
        difference(sample(apply_sliders(model, merged), "SD15"), sample(apply_sliders(model, stack), "SD15")) < 1e-4
    )
    SaveSlider.execute(merged, "merged", "float32")
    info = load_slider(loras / "merged.safetensors").info
    assert (info.family, info.base_model_hash, info.gate) == ("SD15", "h", gate)
    assert info.recipe == {"merged": [{"name": "1", "strength": 0.5}, {"name": "2", "strength": 2.0}]}


def test_stacks_that_cannot_be_one_slider():
    model = tiny_model("SD15")
    one, two = Stack.of(random_slider(model, 1)), Stack.of(random_slider(model, 2))
    for other in (two.gated(Gate(0.5)), two.restricted_to("uncond")):
        with pytest.raises(ValueError, match="'random 1' and 'random 2' act in different parts"):
            MergeSliders.execute(one + other, 0, "x")
    with pytest.raises(ValueError, match="'random 2' is swept"):
        MergeSliders.execute((one + two).swept(1, (0.0, 1.0)), 0, "x")
    with pytest.raises(ValueError, match="the stack is empty"):
        MergeSliders.execute(Stack(), 0, "x")
    merged_stack(one + two.gated(Gate()), 0, "x")  # a gate that is always open is none


def test_the_node_says_what_it_has_not_compressed():
    low = LowRank(torch.randn(4, 7), torch.randn(9, 4))
    norm = Adapter({"w_norm": torch.ones(9), "b_norm": torch.ones(9)})
    stack = Stack.of(Slider("a", {"x": low, "y": Adapter({"diff_b": torch.ones(9)}), "n": norm}), 0.5)
    (text,) = warned(MergeSliders.execute(stack, 2, "x"))
    assert text.endswith("not in the error: 2 of the layers, which are no low-rank products (bias, norm): y, n")
    (text,) = shown(MergeSliders.execute(stack, 0, "x"))
    assert text == "1 sliders in 3 layers, rank 4, exact"


def test_two_names_of_one_weight():
    """By their names alone both stay; with the model they are one layer, which every loader reads."""
    model = tiny_model("SD15")
    slider = random_slider(model)
    own = Slider("own", converted_layers(random_slider(model, 2), "diffusion_model.", model))
    stack = Stack.of(slider) + Stack.of(own)
    expected = sample(apply_sliders(model, stack), "SD15")
    for given, layers in ((None, len(slider.layers) + len(own.layers)), (model, len(slider.layers))):
        merged, _ = merged_stack(stack, 0, "x", given and ComfyModelWeights(given))
        assert len(merged[0].slider.layers) == layers
        assert difference(sample(apply_sliders(model, merged), "SD15"), expected) < 1e-4
