"""Changes that are no low-rank products on other families than UNets, and on parts of joint weights."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.equation.layer_kinds import can_act_on
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import parts_of, random
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import STRENGTH, Subject
from concept_sliders.tests.support.layer_type_files import convolution_parts
from concept_sliders.tests.support.tiny import difference
from safetensors.torch import save_file

KINDS = ("DoRA", "LoHa", "LoKr", "difference", "bias")
ON = ("Flux", "Wan 2.1", "SD3", "PixArt Alpha")


@pytest.fixture(scope="module", params=ON)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("kinds"))


def linear_layers(subject, count=3):
    """Layers within blocks that have a bias, and sizes that LoKr's factors divide."""
    state = subject.model.model.state_dict()
    found = [
        path
        for path, module in subject.model.model.named_modules()
        if "blocks" in path and can_act_on(module) and f"{path}.bias" in state
        if state[f"{path}.weight"].ndim == 2 and all(size % 4 == 0 for size in state[f"{path}.weight"].shape)
    ]
    assert len(found) >= count
    return {path: tuple(state[f"{path}.weight"].shape) for path in found[:count]}


def check(subject, tensors, modes=("unmerged", "merged")):
    path = subject.folder / "kind.safetensors"
    save_file(tensors, path)
    slider = load_slider(path)
    expected = subject.stock(tensors, steps=1)
    assert difference(expected, subject.sampled(subject.model, steps=1)) > 1e-4
    for mode in modes:
        assert difference(subject.acting(Stack.of(slider, STRENGTH), mode, steps=1), expected) < 1e-4, mode


@pytest.mark.parametrize("kind", KINDS)
def test_acts_as_in_the_stock_loader(kind, subject):
    torch.manual_seed(1)
    layers = linear_layers(subject)
    check(subject, {f"{p}.{part}": t for p, (o, i) in layers.items() for part, t in parts_of(kind, o, i).items()})


def test_norms_act_as_in_the_stock_loader(subject):
    torch.manual_seed(2)
    state = subject.model.model.state_dict()
    norms = {key: tensor for key, tensor in state.items() if key.endswith("norm.weight") or ".norm" in key}
    norms = {key: tensor for key, tensor in norms.items() if key.endswith(".weight") and tensor.ndim == 1}
    if not norms:
        pytest.skip("its norms have no weights by which layers are named")
    check(subject, {f"{k.removesuffix('.weight')}.w_norm": random(*t.shape) for k, t in norms.items()})


def grouped_and_transposed(subject) -> dict[str, tuple[int, ...]]:
    """One convolution of each shape that has groups or is transposed, with its weight's shape."""
    modules = ((path, m) for path, m in subject.model.model.named_modules() if hasattr(m, "transposed"))
    special = [(path, tuple(m.weight.shape)) for path, m in modules if m.transposed or m.groups > 1]
    return {path: shape for shape, path in {shape: path for path, shape in reversed(special)}.items()}


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoHa", "difference", "bias"])
@pytest.mark.parametrize("family", ["Stable Cascade C", "Stable Cascade B", "ACE-Step", "ACE-Step 1.5"])
@pytest.mark.filterwarnings("ignore")
def test_grouped_and_transposed_convolutions(family, kind, tmp_path):
    torch.manual_seed(5)
    subject, tensors = Subject(family, tmp_path), {}
    for path, shape in grouped_and_transposed(subject).items():
        if kind == "bias":
            module = subject.model.model.get_submodule(path)
            parts = {"diff_b": random(module.out_channels)} if module.bias is not None else {}
        else:
            parts = convolution_parts("DoRA" if kind == "LoRA" else kind, shape)
        tensors |= {f"{path}.{part}": t for part, t in parts.items() if kind != "LoRA" or part != "dora_scale"}
    assert tensors
    check(subject, tensors)


QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
PART = "transformer.transformer_blocks.0.attn.to_k"


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return Subject("Flux", tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("kind", ["bias", "LoRA with a bias", "LoHa", "difference"])
def test_a_part_of_a_joint_weight_and_of_its_bias(kind, flux):
    """The stock loader drops the bias of a part; it is the same part of the joint bias."""
    torch.manual_seed(3)
    parts = parts_of(kind, 64, 64)
    path = flux.folder / "part.safetensors"
    save_file({f"{PART}.{name}": tensor for name, tensor in parts.items()}, path)
    whole = {}
    if "diff_b" in parts:
        whole[f"{QKV}.diff_b"] = torch.cat([torch.zeros(64), parts["diff_b"], torch.zeros(64)])
    bare = {f"{PART}.{name}": tensor for name, tensor in parts.items() if name != "diff_b"}
    expected = flux.stock({**whole, **bare}, steps=1)
    for mode in ("unmerged", "merged"):
        ours = flux.acting(Stack.of(load_slider(path), STRENGTH), mode, steps=1)
        assert difference(ours, expected) < 1e-4
    assert difference(expected, flux.sampled(flux.model, steps=1)) > 1e-4


def decomposed(weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """m V / |V| - W, V = W + (alpha / rank) up @ down, as PEFT has it."""
    whole = weight + parts["alpha"] / 4 * parts["lora_up.weight"] @ parts["lora_down.weight"]
    return whole * (parts["lora_magnitude_vector"] / whole.norm(dim=1))[:, None] - weight


@pytest.mark.parametrize(
    ("layer", "key", "rows", "reorder"),
    [
        (PART, QKV, slice(64, 128), None),
        ("transformer.norm_out.linear", "diffusion_model.final_layer.adaLN_modulation.1", slice(None), 2),
    ],
)
def test_magnitudes_of_peft_on_parts_and_on_reordered_outputs(layer, key, rows, reorder, flux):
    """By a difference of the joint weight that is worked out by hand."""
    torch.manual_seed(6)
    weight = flux.model.model.get_submodule(key).weight.detach()
    theirs = torch.cat(weight.chunk(2)[::-1]) if reorder else weight[rows]  # in the order of the file
    magnitudes = theirs.norm(dim=1) * (1 + random(len(theirs)))
    parts = {**parts_of("LoRA", *theirs.shape), "lora_magnitude_vector": magnitudes}
    change = decomposed(theirs, parts)
    whole = torch.zeros_like(weight)
    whole[rows] = torch.cat(change.chunk(2)[::-1]) if reorder else change
    slider, expected = Slider("x", {layer: Adapter(parts)}), flux.stock({f"{key}.diff": whole}, steps=1)
    assert difference(expected, flux.sampled(flux.model, steps=1)) > 1e-4
    for mode in ("unmerged", "merged"):
        assert difference(flux.acting(Stack.of(slider, STRENGTH), mode, steps=1), expected) < 1e-4


def test_a_part_whose_outputs_comfyui_reorders(flux):
    torch.manual_seed(4)
    bias = random(128)
    slider = Slider("x", {"transformer.norm_out.linear": Adapter({"diff_b": bias})})
    swapped = torch.cat(bias.chunk(2)[::-1])
    expected = flux.stock({"diffusion_model.final_layer.adaLN_modulation.1.diff_b": swapped}, steps=1)
    assert difference(flux.acting(Stack.of(slider, STRENGTH), steps=1), expected) < 1e-4


def test_a_bias_of_another_size_than_the_part(flux):
    slider = Slider("x", {PART: Adapter({"diff_b": torch.ones(192)})})
    with pytest.raises(
        ValueError, match=rf"Layer {PART}: .*bias is of shape \(192,\), but the model's bias there is \(64,"
    ):
        apply_sliders(flux.model, Stack.of(slider))


def test_a_bias_that_the_model_has_not():
    model = FAMILIES["Flux 2"].build()
    slider = Slider("x", {PART: Adapter({"diff_b": torch.ones(64)})})
    with pytest.raises(ValueError, match=rf"Layer {PART}: it changes {QKV}.bias, which the model has not"):
        apply_sliders(model, Stack.of(slider))
