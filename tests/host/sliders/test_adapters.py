"""Every kind of change that a file can hold: to ComfyUI it is what the file's own tensors are."""

import comfy.lora
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.changes import LowRank, kind_of
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import (
    KINDS,
    NAME,
    change_by_comfyui,
    parts_of,
    random,
    unet_keys,
)
from concept_sliders.tests.support.tiny import difference, sample, tiny_model
from safetensors.torch import save_file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_is_what_comfyui_makes_of_the_file(kind, tmp_path):
    """Loaded, and saved and loaded again: to ComfyUI it is the change that the file's own tensors are."""
    torch.manual_seed(1)
    model = tiny_model("SD15")
    key_map = unet_keys(model)
    out, inner = model.model.state_dict()[key_map[NAME]].shape
    tensors = {f"{NAME}.{part}": tensor for part, tensor in parts_of(kind, out, inner).items()}
    given = tensors if kind != "BOFT" else {**tensors, f"{NAME}.alpha": torch.tensor(0.0)}
    expected = changes(comfy.lora.load_lora(given, {NAME: key_map[NAME]}), model)
    save_file(tensors, tmp_path / "a.safetensors")
    first = load_slider(tmp_path / "a.safetensors")
    assert kind_of(first.layers[NAME]) == {"LoKr, whole": "LoKr", "difference": "difference with a bias"}.get(
        kind, kind
    )
    save_slider(first, tmp_path / "b.safetensors", torch.float32)
    second = load_slider(tmp_path / "b.safetensors")
    for slider in (first, second):
        found = change_by_comfyui(slider, model, key_map)
        assert found.keys() == expected.keys()
        for key, change in expected.items():
            assert change.norm() > 1e-2
            assert difference(found[key], change) < 1e-5
    assert first.content_hash == second.content_hash


def changes(patches, model):
    state = model.model.state_dict()
    return {
        key: comfy.lora.calculate_weight([(1.0, value, 1.0, None, None)], state[key].clone(), key) - state[key]
        for key, value in patches.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_in_the_file_is_the_strength(kind, tmp_path):
    torch.manual_seed(2)
    model = tiny_model("SD15")
    key_map = unet_keys(model)
    out, inner = model.model.state_dict()[key_map[NAME]].shape
    save_file({f"{NAME}.{p}": t for p, t in parts_of(kind, out, inner).items()}, tmp_path / "a.safetensors")
    slider = load_slider(tmp_path / "a.safetensors")
    turned = Slider("turned", {NAME: slider.layers[NAME].scaled(-0.7)})
    if kind in ("DoRA", "LoHa with DoRA", "OFT", "BOFT"):
        with pytest.raises(
            ValueError, match=rf"Layer {NAME} is {kind}, and a file cannot hold it at a strength of -0.7"
        ):
            save_slider(turned, tmp_path / "b.safetensors", torch.float32)
        assert not (tmp_path / "b.safetensors").exists()
        return
    save_slider(turned, tmp_path / "b.safetensors", torch.float32)
    found = change_by_comfyui(load_slider(tmp_path / "b.safetensors"), model, key_map)
    expected = change_by_comfyui(slider, model, key_map)
    for key, change in expected.items():
        assert difference(found[key], -0.7 * change) < 1e-5


def test_a_middle_convolution_is_folded_exactly(tmp_path):
    torch.manual_seed(3)
    model = tiny_model("SD15")
    key_map = unet_keys(model)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    parts = {
        "lora_up.weight": random(32, 4, 1, 1),
        "lora_down.weight": random(4, 32, 1, 1),
        "lora_mid.weight": random(4, 4, 3, 3),
        "alpha": torch.tensor(2.0),
    }
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()}
    expected = changes(comfy.lora.load_lora(tensors, {name: key_map[name]}), model)
    save_file(tensors, tmp_path / "a.safetensors")
    slider = load_slider(tmp_path / "a.safetensors")
    layer = slider.layers[name]
    assert isinstance(layer, LowRank) and layer.rank == 4 and layer.down.shape == (4, 32, 3, 3)
    (found,), (wanted,) = change_by_comfyui(slider, model, key_map).values(), expected.values()
    assert difference(found, wanted) < 1e-6


CONV = "lora_unet_down_blocks_0_resnets_0_conv1"  # (32, 32, 3, 3)
CORES = {
    "LoHa": {f"hada_w{i}_{ab}": (4, 32) for i in (1, 2) for ab in "ab"}
    | {f"hada_t{i}": (4, 4, 3, 3) for i in (1, 2)},
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (3, 8), "lokr_w2_b": (3, 8), "lokr_t2": (3, 3, 3, 3)},
    "LoKr of products": {
        "lokr_w1_a": (4, 2),
        "lokr_w1_b": (2, 4),
        "lokr_w2_a": (3, 8),
        "lokr_w2_b": (3, 8),
        "lokr_t2": (3, 3, 3, 3),
    },
    "LoKr, whole": {"lokr_w1": (4, 4), "lokr_w2": (8, 8, 3, 3)},
}


def product(parts):
    """The difference that factors and cores make, as their authors define it, with alpha 2."""
    if "hada_t1" in parts:
        one, two = (
            torch.einsum("oikl,oc,id->cdkl", parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"])
            for n in (1, 2)
        )
        return one * two * 2 / 4
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        second = torch.einsum("oikl,oc,id->cdkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"]) * 2 / 3
    return torch.kron(first[:, :, None, None], second.contiguous())


@pytest.mark.parametrize("kind", CORES)
def test_convolutions_with_cores(kind, tmp_path):
    """Tucker's form: the kernel lies in a core between the factors. The stock loader fails at LoKr's."""
    torch.manual_seed(5)
    model = tiny_model("SD15")
    parts = {part: random(*size) for part, size in CORES[kind].items()}
    tensors = {f"{CONV}.{part}": tensor for part, tensor in parts.items()}
    save_file({**tensors, f"{CONV}.alpha": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    slider = load_slider(tmp_path / "a.safetensors")
    assert kind_of(slider.layers[CONV]) == kind.partition(" ")[0].rstrip(",")
    save_slider(Slider("b", {CONV: slider.layers[CONV].scaled(-0.7)}), tmp_path / "b.safetensors", torch.float32)
    for given, strength in ((slider, 1.0), (load_slider(tmp_path / "b.safetensors"), -0.7)):
        given_parts = {f"{CONV}.diff": strength * product(parts)}
        stock, _ = comfy.sd.load_lora_for_models(model, None, given_parts, 1.0, 0.0)
        expected = sample(stock, "SD15")
        assert difference(expected, sample(model, "SD15")) > 1e-4
        for mode in ("unmerged", "merged"):
            assert difference(sample(apply_sliders(model, Stack.of(given), mode), "SD15"), expected) < 1e-4


def test_norms(tmp_path):
    model = tiny_model("SD15")
    name = "lora_unet_down_blocks_0_resnets_0_norm1"
    tensors = {f"{name}.w_norm": random(32), f"{name}.b_norm": random(32)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = change_by_comfyui(load_slider(tmp_path / "a.safetensors"), model, unet_keys(model))
    expected = changes(comfy.lora.load_lora(tensors, {name: unet_keys(model)[name]}), model)
    assert found.keys() == expected.keys() and len(found) == 2
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["DoRA", "BOFT", "GLoRA", "LoHa with DoRA"])
@pytest.mark.filterwarnings("ignore")
def test_kinds_act_in_a_run_as_with_the_stock_loader(kind, tmp_path):
    torch.manual_seed(4)
    model = tiny_model("SD15")
    out, inner = model.model.state_dict()[unet_keys(model)[NAME]].shape
    tensors = {f"{NAME}.{part}": tensor for part, tensor in parts_of(kind, out, inner).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    ours = sample(apply_sliders(model, Stack.of(load_slider(tmp_path / "a.safetensors"))), "SD15")
    given = {**tensors, **({f"{NAME}.alpha": torch.tensor(0.0)} if kind == "BOFT" else {})}
    stock, _ = comfy.sd.load_lora_for_models(model, None, given, 1.0, 0.0)
    assert difference(ours, sample(stock, "SD15")) < 1e-4
    assert difference(ours, sample(model, "SD15")) > 1e-4
