"""Changes that do not fit the weights they are for: refused when they are applied, before anything is multiplied."""

import re

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.layer_changes import patch_values
from concept_sliders.comfy_host.weight_adapters import ComfyPatch
from concept_sliders.sliders.adapters.shape_checks import check_fits
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import KINDS, NAME, parts_of, unet_keys
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"  # (32, 32, 3, 3)
LONG = 9000  # a product of this size squared would take a third of a gigabyte


@pytest.fixture(scope="module")
def model():
    return tiny_model("SD15")


def hada(out, inner, rank=1, tucker=()):
    """LoHa's four factors, and with `tucker` (a kernel's shape) its cores."""
    sides = ((rank, out), (rank, inner)) if tucker else ((out, rank), (rank, inner))
    parts = {f"hada_w{i}_{ab}": torch.ones(side) for i in (1, 2) for ab, side in zip("ab", sides)}
    return parts | {f"hada_t{i}": torch.ones(rank, rank, *tucker) for i in (1, 2) if tucker}


HOSTILE = {
    "LoHa": (hada(LONG, LONG), (LONG, LONG)),
    "LoHa with cores": (hada(LONG, LONG, tucker=(1, 1)), (LONG, LONG, 1, 1)),
    "LoKr": ({"lokr_w1": torch.ones(90, 90), "lokr_w2": torch.ones(100, 100)}, (LONG, LONG)),
    "LoKr of products": (
        {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": torch.ones(LONG, 1), "lokr_w2_b": torch.ones(1, LONG)},
        (LONG, LONG),
    ),
    "DoRA": (
        {
            "lora_up.weight": torch.ones(LONG, 1),
            "lora_down.weight": torch.ones(1, LONG),
            "dora_scale": torch.ones(LONG, 1),
        },
        (LONG, LONG),
    ),
    "difference": ({"diff": torch.ones(3, 5)}, (3, 5)),
    "bias": ({"diff_b": torch.ones(LONG)}, (LONG,)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_product_of_another_shape_is_never_formed(case, model, tmp_path):
    parts, shape = HOSTILE[case]
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "x.safetensors")
    slider = load_slider(tmp_path / "x.safetensors")
    own = tuple(model.model.state_dict()[unet_keys(model)[NAME]].shape)
    own = own[:1] if case == "bias" else own
    message = f"Layer {NAME}: .*{re.escape(str(shape))}.*there is {re.escape(str(own))}"
    with pytest.raises(ValueError, match=message):
        apply_sliders(model, Stack.of(slider))


def test_a_convolution_with_cores_of_another_kernel(model):
    good = Slider("x", {CONV: Adapter(hada(32, 32, 2, (3, 3)))})
    apply_sliders(model, Stack.of(good))
    with pytest.raises(ValueError, match=r"LoHa change is of shape \(32, 32, 5, 5\).*there is \(32, 32, 3, 3\)"):
        apply_sliders(model, Stack.of(Slider("x", {CONV: Adapter(hada(32, 32, 2, (5, 5)))})))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"oft_blocks": torch.ones(2, 4, 16, 16)}, r"BOFT change is of shape \(64, 128\)"),
        ({"oft_blocks": torch.ones(4, 2, 16, 16)}, "BOFT change is made for one of another shape"),
        (
            {**parts_of("GLoRA", 32, 128), "a1.weight": torch.ones(128, 2), "a2.weight": torch.ones(2, 99)},
            "GLoRA change is made for one of another shape",
        ),
        (
            {**parts_of("LoHa", 32, 128), "dora_scale": torch.ones(32, 1, 1)},
            r"DoRA's magnitudes are of shape \(32, 1, 1\)",
        ),
    ],
)
def test_what_a_change_takes_of_the_weight_must_fit_too(parts, message, model):
    with pytest.raises(ValueError, match=message):
        apply_sliders(model, Stack.of(Slider("x", {NAME: Adapter(parts)})))


SIZES = st.sampled_from((2, 4, 8))
SHAPES = st.one_of(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES, st.sampled_from((1, 3)), st.just(1)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_passes_is_what_comfyui_applies(data):
    """Whatever the shapes: what is let through, ComfyUI's own code applies."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    kind = data.draw(st.sampled_from([*KINDS, "cores"]))
    weight, own = data.draw(SHAPES), data.draw(st.tuples(SIZES, SIZES))
    if kind == "cores":
        parts = hada(*own, 2, (data.draw(st.sampled_from((1, 3))), 1))
    else:
        parts = parts_of(kind, *(4 * size for size in own))
        weight = (4 * weight[0], 4 * weight[1], *weight[2:])
    change = Adapter({"alpha": torch.tensor(1.0), **parts})
    module = torch.nn.Linear(1, weight[0])
    module.weight = torch.nn.Parameter(torch.randn(weight))
    try:
        check_fits("x", change.parts, weight)
    except ValueError:
        return
    for key, value, offset, function in patch_values(change, "x", "x.weight"):
        if key == "x.weight":
            ComfyPatch("weight", value, offset, function, 1.0, True).multiplied(module, "x")


def test_parts_that_the_weight_has_not():
    """ComfyUI takes queries, keys and values to be equally wide; where they are not, its map leads too far."""
    lumina = FAMILIES["Lumina 2"].build()
    name = "diffusion_model.layers.0.attention.to_v"
    assert name in unet_keys(lumina)
    for change in (LowRank(torch.ones(2, 64), torch.ones(64, 2)), Adapter(hada(64, 64))):
        with pytest.raises(ValueError, match=f"Layer {name} stands for 64 rows from 128 on .* there are fewer"):
            apply_sliders(lumina, Stack.of(Slider("x", {name: change})))
