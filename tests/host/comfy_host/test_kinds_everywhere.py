"""Every kind of change on every family: one layer of each type that the host patches."""

import comfy.sd
import pytest
import torch
from concept_sliders.sliders.equation.layer_kinds import can_act_on, is_linear, weight_shape
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import parts_of, random
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.tiny import difference
from safetensors.torch import save_file

LINEAR = ("DoRA", "LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "difference", "bias")
CONVOLUTION = ("DoRA", "LoCon", "LoHa", "LoKr", "difference")
# The stock loader knows LoCon's middle and LoKr on two-dimensional convolutions only
OTHER_CONVOLUTION = ("DoRA", "LoHa", "difference")
TYPES = {
    "Linear": is_linear,
    "Conv1d": lambda m: isinstance(m, torch.nn.Conv1d),
    "Conv2d": lambda m: isinstance(m, torch.nn.Conv2d),
    "Conv3d": lambda m: isinstance(m, torch.nn.Conv3d),
    "GroupNorm": lambda m: isinstance(m, torch.nn.GroupNorm),
    "LayerNorm": lambda m: isinstance(m, torch.nn.LayerNorm),
    "RMSNorm": lambda m: isinstance(m, torch.nn.RMSNorm),
    "Embedding": lambda m: isinstance(m, torch.nn.Embedding),
}


def convolution_parts(kind: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a change of a convolution's weight, (out, in, *kernel)."""
    out, inner, *kernel = shape
    ones, flat = (1,) * len(kernel), inner * int(torch.tensor(kernel).prod())
    low = {"lora_up.weight": random(out, 2, *ones), "lora_down.weight": random(2, inner, *kernel)}
    return {
        "DoRA": {**low, "dora_scale": 1 + random(out, 1, *ones).abs()},
        "LoCon": {
            "lora_up.weight": random(out, 2, *ones),
            "lora_down.weight": random(2, inner, *ones),
            "lora_mid.weight": random(2, 2, *kernel),
        },
        "LoHa": {f"hada_w{i}_{ab}": random(*((out, 2) if ab == "a" else (2, flat))) for i in (1, 2) for ab in "ab"},
        "LoKr": {"lokr_w1": random(2, 1), "lokr_w2": random(out // 2, inner, *kernel)},
        "difference": {"diff": random(*shape)},
    }[kind]


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("kinds"))


def modules_called(subject: Subject) -> list[str]:
    """The paths of modules with a weight whose forward runs in an evaluation, in the model's order."""
    called, modules = set(), dict(subject.model.model.named_modules())
    own = ((path, module) for path, module in modules.items() if path.startswith("diffusion_model."))
    weighted = [path for path, module in own if getattr(module, "weight", None) is not None]
    hooks = [modules[p].register_forward_hook(lambda *_, path=p: called.add(path)) for p in weighted]
    subject.sampled(subject.model, steps=1)
    for hook in hooks:
        hook.remove()
    return [path for path in weighted if path in called]


def layers_by_type(subject: Subject) -> dict[str, list[str]]:
    """The paths of the layers that run in an evaluation, by type; with sizes that the kinds' factors divide."""
    found: dict[str, list[str]] = {}
    for path in modules_called(subject):
        module = subject.model.model.get_submodule(path)
        kind = next((name for name, is_it in TYPES.items() if is_it(module)), None)
        if kind is None or getattr(module, "groups", 1) != 1 or ".llm_adapter." in path:
            continue
        sizes = weight_shape(module, path) if can_act_on(module) else ()
        if all(size % 8 == 0 for size in sizes) if kind == "Linear" else not sizes or sizes[0] % 2 == 0:
            found.setdefault(kind, []).append(path)
    return found


def parts_for(kind: str, module: torch.nn.Module, path: str) -> dict[str, torch.Tensor] | None:
    """The tensors of a change of this kind for a layer; None where the layer has nothing of the sort."""
    if kind == "norm":
        parts = {"w_norm": random(*module.weight.shape)}
        return parts if getattr(module, "bias", None) is None else {**parts, "b_norm": random(*module.bias.shape)}
    if kind == "embedding":
        return {"diff": random(*module.weight.shape)}
    if not is_linear(module):
        return convolution_parts(kind, weight_shape(module, path))
    parts = parts_of(kind, *weight_shape(module, path))
    if module.bias is None:
        parts.pop("diff_b", None)
    if kind == "BOFT":
        parts["alpha"] = torch.tensor(0.0)  # the stock loader needs to be told
    return parts or None


def files_of(subject: Subject, kinds: dict[str, tuple[str, ...]]) -> list[dict[str, torch.Tensor]]:
    """Files that have all kinds between them, each kind on a layer of its own. kinds: by the type of layer."""
    torch.manual_seed(1)
    files: list[dict[str, torch.Tensor]] = []
    for type_, paths in layers_by_type(subject).items():
        for number, kind in enumerate(kinds.get(type_, ())):
            turn, place = divmod(number, len(paths))
            path = paths[place]
            parts = parts_for(kind, subject.model.model.get_submodule(path), path)
            while len(files) <= turn:
                files.append({})
            files[turn] |= {f"{path}.{part}": tensor for part, tensor in (parts or {}).items()}
    return [file for file in files if file]


PRODUCTS = {"Linear": LINEAR, "Conv2d": CONVOLUTION, **dict.fromkeys(("Conv1d", "Conv3d"), OTHER_CONVOLUTION)}
OTHERS = {**dict.fromkeys(("GroupNorm", "LayerNorm", "RMSNorm"), ("norm",) * 3), "Embedding": ("embedding",)}


def check(subject: Subject, tensors, ways) -> float:
    """One evaluation against the stock loader; how far that is from the bare model.

    At strength 1, since of an OFT the host takes the strength twice.
    """
    path = subject.folder / "kinds.safetensors"
    save_file(tensors, path)
    slider = load_slider(path)
    stock, _ = comfy.sd.load_lora_for_models(subject.model, None, dict(tensors), 1.0, 0.0)
    expected = subject.sampled(stock, steps=1)
    for mode in ways:
        assert difference(subject.acting(Stack.of(slider), mode, steps=1), expected) < 1e-4, (mode, sorted(tensors))
    return difference(expected, subject.sampled(subject.model, steps=1))


@pytest.mark.filterwarnings("ignore")
def test_every_kind_on_linear_layers_and_convolutions(subject):
    files = files_of(subject, PRODUCTS)
    assert len({key.rpartition(".")[2] for file in files for key in file}) >= 12  # all of the linear kinds' parts
    assert all(check(subject, file, ("unmerged", "merged")) > 1e-5 for file in files)
    subject.assert_untouched()


def test_norms_and_embeddings(subject):
    files = files_of(subject, OTHERS)
    if not files:
        pytest.skip("its norms have no weights, and it has no embeddings")
    # what a last layer's norm gives to the prompt's tokens, say, nobody reads
    assert max(check(subject, file, ("unmerged", "merged")) for file in files) > 1e-5
