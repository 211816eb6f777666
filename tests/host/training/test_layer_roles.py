"""Layers by their role mean the same on every family."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.whole_unets import WHOLE_UNETS, c3lier_layers, whole_unet
from concept_sliders.training.layer_choice import BY_ROLE, PUBLISHED, choose_layers
from concept_sliders.training.recipe import Recipe

# They attend to the prompt and to the image in one
JOINT = (
    "Stable Cascade",
    "SD3",
    "Flux",
    "Chroma",
    "AuraFlow",
    "HunyuanImage",
    "HunyuanVideo",
    "Lumina",
    "Z-Image",
    "Qwen",
    "HiDream",
    "OmniGen",
    "Boogu",
    "Krea",
    "Lens",
    "Ernie",
    "Ideogram",
    "MageFlow",
    "JoyImage",
    "Mochi",
    "CogVideoX",
    "LongCat-Image",
    "Hunyuan3D 2",
    "MiniMax",
    "PixelDiT",
)


@cache
def paths_of(family):
    with torch.inference_mode():
        return tuple(layer_names(FAMILIES[family].build()))


@pytest.mark.parametrize("family", FAMILIES)
def test_roles(family):
    paths = paths_of(family)
    taken = {}
    for choice in BY_ROLE:
        if choice == "cross-attention" and family.startswith(JOINT) and family != "Hunyuan3D 2.1":
            with pytest.raises(ValueError, match="attends to the prompt and to the image at once"):
                choose_layers(paths, choice)
            taken[choice] = set()
        else:
            taken[choice] = set(choose_layers(paths, choice))
    assert taken["all"] == set(paths)
    assert taken["self-attention"] | taken["cross-attention"] == taken["attention"]
    assert not taken["self-attention"] & taken["cross-attention"]
    left = taken["all"] - taken["all but cross-attention"] - taken["cross-attention"]
    assert all(any(word in path for word in ("time", "t_embedder", "t_block", "tmlp", "label_emb")) for path in left)
    assert len(taken["attention"]) >= 2  # in and out


@pytest.mark.parametrize("family", FAMILIES)
def test_published_methods(family):
    """Beyond UNets, for which alone the published trainer has rules, they are attention by its roles."""
    paths = paths_of(family)
    taken = {choice: set(choose_layers(paths, choice)) for choice in ("noxattn", "selfattn", "xattn", "full")}
    attention, own = set(choose_layers(paths, "attention")), set(choose_layers(paths, "self-attention"))
    resnets = taken["full"] - attention
    joint = own == attention
    assert taken["selfattn"] == own and taken["noxattn"] == own | resnets == set(choose_layers(paths, "innoxattn"))
    assert taken["xattn"] == (attention if joint else attention - own)
    assert taken["full"] == taken["noxattn"] | taken["xattn"]
    strict = set(choose_layers(paths, "xattn-strict"))
    assert strict and strict <= taken["xattn"]
    assert bool(resnets) == any(".input_blocks." in path for path in paths)
    assert not any("embed" in path or "label_emb" in path for path in resnets)
    if not resnets:
        with pytest.raises(ValueError, match="layers is 'noxattn-hspace'"):
            choose_layers(paths, "noxattn-hspace")


# How many layers each method takes of the whole SD 1.5 and SDXL
COUNTS = {
    "noxattn": (150, 346),
    "innoxattn": (150, 346),
    "selfattn": (64, 280),
    "xattn": (64, 280),
    "xattn-strict": (48, 210),
    "xattn-up": (72, 288),
    "xattn-mid": (8, 80),
    "xattn-down": (48, 192),
    "full": (214, 626),
    "noxattn-hspace": (10, 46),
    "noxattn-hspace-last": (1, 1),
}


def test_the_page_on_the_published_method_has_these_counts():
    page = (Path(__file__).parents[3] / "docs" / "published.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\S+`|`xattn-up`.+?|\*.+?\*) \| ([\d, ]+) \| ([\d, ]+) \|", page, flags=re.MULTILINE)
    said = {}
    for names, *counts in rows:
        split = [re.findall(r"\d+", count) for count in counts]
        said |= zip(re.findall(r"[`*]([^`*]+)[`*]", names), zip(*(map(int, each) for each in split)))
    assert {method: said.pop(method) for method in COUNTS} == COUNTS
    sizes = [list(layer_names(whole_unet(size))) for size in WHOLE_UNETS]
    assert said == {
        role: tuple(len(choose_layers(paths, role)) for paths in sizes) for role in ("all but cross-attention", "all")
    }


@pytest.mark.parametrize("size", WHOLE_UNETS)
def test_published_methods_take_exactly_their_layers(size):
    """Those that diffusers' classes have which the published trainer looks for, listed block by block."""
    names = layer_names(whole_unet(size))
    layers = c3lier_layers(size)
    methods = {
        "noxattn": lambda name: "attn2" not in name,
        "selfattn": lambda name: "attn1" in name,
        "xattn": lambda name: "attn2" in name,
        "xattn-strict": lambda name: "attn2" in name and "to_out" not in name,
        "xattn-up": lambda name: "attn" in name and "_up_blocks_" in name,
        "xattn-mid": lambda name: "attn" in name and "_mid_block_" in name,
        "xattn-down": lambda name: "attn" in name and "_down_blocks_" in name,
        "full": lambda name: True,
        "noxattn-hspace": lambda name: "_mid_block_" in name and "attn2" not in name,
        "noxattn-hspace-last": lambda name: name.endswith("mid_block_resnets_1_conv2"),
    }
    methods["innoxattn"] = methods["noxattn"]
    assert set(methods) == set(PUBLISHED) == set(COUNTS)
    for method, takes in methods.items():
        taken = {names[path] for path in choose_layers(names, method)}
        assert taken == set(filter(takes, layers)), method
        assert len(taken) == COUNTS[method][list(WHOLE_UNETS).index(size)], method
    assert not any("label_emb" in path for path in choose_layers(names, Recipe.layers))


def inputs_of(model, paths, conditioning, x):
    """The tensor that each of these layers is given, at its first call, in one evaluation of the model."""
    given, handles = {}, []
    for path in paths:
        module = model.model.get_submodule(path)

        def note(module, args, path=path):
            given.setdefault(path, args[0].detach().clone())

        handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode(), borrowed(model), torch.no_grad():
            Denoiser(model, {"": conditioning})(x, torch.tensor(0.7), [""])
    finally:
        for handle in handles:
            handle.remove()
    return given


@pytest.mark.parametrize(
    "family", ["SD 1", "SD 2", "SDXL", "PixArt Alpha", "PixArt Sigma", "Hunyuan-DiT", "Cosmos", "Wan 2.1", "LTXV"]
)
def test_layers_are_fed_by_what_their_role_says(family):
    """Keys and values of cross-attention by the prompt alone, all other attention by the image."""
    made = FAMILIES[family]
    with torch.inference_mode():
        model = made.build()
        paths = list(layer_names(model))
    one, other = made.conditioning(1), made.conditioning(1)
    other[0][0] = other[0][0] + 1.0  # another prompt; what comes with it is the same
    x, another = (torch.randn(made.empty(1).shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    base, prompted, pictured = (inputs_of(model, paths, c, y) for c, y in ((one, x), (other, x), (one, another)))

    def fed_by(changed, path):
        return path in base and not torch.equal(base[path], changed[path])

    cross, own = (choose_layers(paths, choice) for choice in ("cross-attention", "self-attention"))
    prompt_alone = [path for path in cross if path in base and not fed_by(pictured, path)]
    assert len(prompt_alone) >= 1 and all(fed_by(prompted, path) for path in prompt_alone)
    image = [path for path in cross if fed_by(pictured, path)]
    assert len(image) >= len(prompt_alone) / 2  # queries and outputs
    met = [path for path in own if path in base]
    assert len(met) >= 2 and all(fed_by(pictured, path) for path in met)
