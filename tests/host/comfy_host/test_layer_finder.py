"""Layers by the names of every trainer, on every family of models: the same change of the same weight."""

from functools import cache
from itertools import cycle, islice

import comfy.lora
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.layer_finder import LayerFinder
from concept_sliders.comfy_host.match import layer_names, match_slider
from concept_sliders.comfy_host.text_encoders import apply_to_clip, match_text
from concept_sliders.nodes.applying import ApplySliders
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.formats.keys import read_layers
from concept_sliders.sliders.formats.layer_index import LayerIndex, model_paths
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_names import PREFIXES, stands_for_a_layer
from concept_sliders.tests.support.reports import warned
from concept_sliders.tests.support.spellings import SPELLINGS
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tiny_model
from concept_sliders.tests.support.tiny_clip import tiny_clip

DIFFUSERS = "unet.", "transformer.", "base_model.model."


@cache
def model_of(family):
    return FAMILIES[family].build()


def paths_of(model) -> list[dict[str, object]]:
    """The layers' paths in ComfyUI's model, and those that it knows of diffusers', with what they stand for."""
    state = model.model.state_dict()
    own, diffusers = {}, {}
    for name, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        if ".processor." in name or not stands_for_a_layer(model, state, target):
            continue
        if prefix == "diffusion_model.":
            own[name.removeprefix(prefix)] = target
        elif prefix in DIFFUSERS:
            diffusers[name.removeprefix(prefix)] = target
    return [paths for paths in (own, diffusers) if paths]


def file_of(model, names) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A file's tensors for layers of these names, and what they add to each weight: rows of up @ down.

    names: with what they stand for in the model.
    """
    generator, tensors, expected = torch.Generator().manual_seed(3), {}, {}
    for name, target in names.items():
        key, (dim, start, rows) = target[:2] if isinstance(target, tuple) and target[1] else (target, (0, 0, None))
        key, order = (key, None) if isinstance(key, str) else (key[0], key[2])
        path = key.removesuffix(".weight")
        weight = torch.zeros(weight_shape(model.model.get_submodule(path), path))
        down = torch.randn(1, *weight.shape[1:], generator=generator)
        up = torch.randn(rows or weight.shape[0], 1, *(1 for _ in weight.shape[2:]), generator=generator)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        product = (up.flatten(1) @ down.flatten(1)).reshape(-1, *weight.shape[1:])
        whole = expected.setdefault(path, weight)
        whole.narrow(dim, start, len(product)).add_(product if order is None else order(product))
    return tensors, expected


def added_by(match) -> dict[str, torch.Tensor]:
    """What a match adds to each weight."""
    found = {}
    for path, changes in match.layers.items():
        for change in changes:
            product = (change.up.flatten(1) @ change.down.flatten(1)).reshape(-1, *change.down.shape[1:])
            found[path] = found.get(path, 0) + product
    return found


def changes_as_meant(model, names):
    """A file with layers of these names, each with what it stands for, changes the weights that are meant."""
    tensors, expected = file_of(model, names)
    match = match_slider(model, Slider("x", read_layers(tensors)[0]))
    assert (match.unmatched, match.misfits, match.matched) == ((), {}, len(names))
    found = added_by(match)
    assert found.keys() == expected.keys()
    for path, change in expected.items():
        assert difference(found[path], change) < 1e-5, path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_is_a_direct_change_of_the_weights(family):
    """Every layer of every family, each spelled in another way than the one before it."""
    model, ways = model_of(family), list(SPELLINGS.values())
    for paths in paths_of(model):
        for first in (0, 5):
            spelled = zip(paths.items(), islice(cycle(ways), first, None), strict=False)
            changes_as_meant(model, {way(path): target for (path, target), way in spelled})
        changes_as_meant(model, {f"my_trainer.denoising_model.{path}": target for path, target in paths.items()})


@pytest.mark.parametrize("who", SPELLINGS)
@pytest.mark.parametrize("family", ["Flux", "Z-Image", "Wan 2.1 image to video", "HunyuanVideo", "SD3", "LTXV"])
def test_files_of_one_spelling(family, who):
    for paths in paths_of(model_of(family)):
        changes_as_meant(model_of(family), {SPELLINGS[who](path): target for path, target in paths.items()})


# What makes names ambiguous, by what the layers are called in ComfyUI: the same end of two paths
CONNECTOR = "transformer_1d_blocks.0.attn1.to_q"


def test_two_readings_that_both_fit_are_said_and_refused():
    model = model_of("LTX 2")
    places = [path for path in layer_names(model) if path.endswith(CONNECTOR)]
    assert len(places) == 2
    shape = weight_shape(model.model.get_submodule(places[0]), CONNECTOR)
    slider = Slider("either", {CONNECTOR: LowRank(torch.ones(1, shape[1]), torch.ones(shape[0], 1))})
    with pytest.raises(ValueError, match=f"Layer {CONNECTOR} can be either of {places[0]}.* and {places[1]}.*"):
        apply_sliders(model, Stack.of(slider))


def test_shapes_tell_two_readings_apart():
    tree = torch.nn.ModuleDict(
        {
            part: torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(3, size)])})
            for part, size in (("one", 4), ("other", 5))
        }
    )
    key_map = {f"diffusion_model.{part}.blocks.0.q": f"{part}.blocks.0.weight" for part in tree}
    finder = LayerFinder(tree, LayerIndex(key_map, model_paths))
    for part, size in (("one", 4), ("other", 5)):
        placement = finder.place({"lora_unet_blocks_0_q": LowRank(torch.ones(1, 3), torch.ones(size, 1))})
        assert [path for path, _ in placement.changes["lora_unet_blocks_0_q"]] == [f"{part}.blocks.0"]


def test_a_file_of_parts_of_a_model_says_what_it_is_read_without():
    model, front = tiny_model("Flux"), "some.thing."
    slider = random_slider(model)
    spelled = Slider("x", {front + name: layer for name, layer in slider.layers.items()})
    report = "\n".join(warned(ApplySliders.execute(model, Stack.of(spelled))))
    assert f"{len(slider.layers)} of {len(slider.layers)} layers" in report
    assert f"the names of its layers are read without '{front}' in front" in report
    assert difference(*(sample(apply_sliders(model, Stack.of(s)), "Flux") for s in (slider, spelled))) == 0


# Layers of the bare model that a variant of it has with more inputs
WIDENED = [
    ("Flux", "Flux Fill", "diffusion_model.img_in"),
    ("Flux", "Flux Canny and Depth", "diffusion_model.img_in"),
    ("SD 1", "SD 1 inpainting", "lora_unet_conv_in"),
    ("SD 1 inpainting", "SD 1", "lora_unet_conv_in"),
]


@pytest.mark.parametrize(("trained_on", "used_on", "layer"), WIDENED)
def test_a_layer_that_does_not_fit_is_left_out_and_named(trained_on, used_on, layer, caplog):
    slider, model = random_slider(model_of(trained_on)), model_of(used_on)
    rest = Slider("rest", {name: change for name, change in slider.layers.items() if name != layer})
    match, without = match_slider(model, slider), match_slider(model, rest)
    assert set(match.misfits) == {layer} and without.misfits == {}
    assert match.matched == without.matched == len(rest.layers)
    assert {path: len(changes) for path, changes in match.layers.items()} == dict.fromkeys(without.layers, 1)
    found, expected = added_by(match), added_by(without)
    assert all(torch.equal(found[path], change) for path, change in expected.items())
    report = "\n".join(warned(ApplySliders.execute(model, Stack.of(slider))))
    own = tuple(
        weight_shape(model.model.get_submodule(path), layer)
        for path, name in layer_names(model).items()
        if name == layer
    )
    assert f"{len(rest.layers)} of {len(slider.layers)} layers" in report
    assert f"left out: Layer {layer}: " in report and str(own[0]) in report
    assert f"{len(rest.layers)} of its {len(slider.layers)} layers" in caplog.text and layer in caplog.text


def test_most_layers_must_fit():
    model = tiny_model("SD15")
    layers = random_slider(model).layers
    names = list(layers)[:6]

    def with_misfits(count):
        wrong = {name: LowRank(torch.ones(1, 3), torch.ones(5, 1)) for name in names[:count]}
        return Slider("x", {**{name: layers[name] for name in names[count:]}, **wrong})

    assert match_slider(model, with_misfits(3)).matched == 3
    with pytest.raises(ValueError, match=rf"4 of the 6 layers of slider 'x'.*do not fit it. Layer {names[0]}"):
        match_slider(model, with_misfits(4))


def names_said(error):
    """The names of the file, and of the model, that a message shows."""
    said = str(error).partition("such as ")[2]
    theirs, own = said.split("; the model such as ")
    return [part.replace(" and ", ", ").split(", ") for part in (theirs, own.partition(". ")[0])]


@pytest.mark.parametrize("family", ["SD 1", "Flux", "Wan 2.1", "Z-Image"])
def test_names_that_are_not_known_are_not_another_family(family):
    model = model_of(family)
    layers = {f"base_model.model.head_{n}.strange": LowRank(torch.ones(1, 3), torch.ones(5, 1)) for n in range(7)}
    tensors = {f"{name}.lora_A.weight": layer.down for name, layer in layers.items()}
    tensors |= {f"{name}.lora_B.weight": layer.up for name, layer in layers.items()}
    read, report = read_layers(tensors)
    slider = Slider("strange", read, SliderInfo(names_in_file=report.renamed))
    with pytest.raises(ValueError, match=r"None of the 7 layers of slider 'strange' is in this diffusion model") as e:
        match_slider(model, slider)
    theirs, own = names_said(e.value)
    assert len(theirs) == len(own) == 3
    assert set(theirs) <= set(layers)  # as the file has them
    assert set(own) <= set(comfy.lora.model_lora_keys_unet(model.model, {}))
    assert "Its names are not known here" in str(e.value) and "another family" not in str(e.value)


@pytest.mark.parametrize(("family", "other"), [("Flux", "SD 1"), ("SD 1", "Wan 2.1"), ("Wan 2.1", "Flux")])
def test_names_of_another_family_are_said_to_be(family, other):
    with pytest.raises(ValueError, match="made for another family") as e:
        match_slider(model_of(other), random_slider(model_of(family)))
    assert [len(names) for names in names_said(e.value)] == [3, 3]


@pytest.mark.parametrize("prefix", ["text_encoder.base_model.model.", "lora_te1.", "text_encoder.", "lora_te_"])
def test_names_of_text_encoders(prefix):
    clip = tiny_clip()
    path = "text_model.encoder.layers.0.mlp.fc1"
    plain = Slider("x", {f"lora_te_{path.replace('.', '_')}": LowRank(torch.ones(1, 32), torch.ones(64, 1))})
    (layer,) = plain.layers.values()
    name = prefix + (path.replace(".", "_") if prefix.startswith("lora") else path)
    found, expected = (match_text(clip, Slider("x", {n: layer})) for n in (name, next(iter(plain.layers))))
    assert found.layers.keys() == expected.layers.keys()
    patched = apply_to_clip(clip, Stack.of(Slider("x", {name: layer})))
    assert patched.patcher.patches.keys() == {f"{path}.weight" for path in expected.layers}


def test_a_text_layer_that_does_not_fit_is_left_out():
    clip = tiny_clip()
    paths = [f"lora_te_text_model_encoder_layers_0_self_attn_{part}_proj" for part in "kqv"]
    layers = {name: LowRank(torch.ones(1, 32), torch.ones(32, 1)) for name in paths}
    layers[paths[1]] = LowRank(torch.ones(1, 8), torch.ones(8, 1))
    model = tiny_model("SD15")
    report = "\n".join(warned(ApplySliders.execute(model, Stack.of(Slider("x", layers)), clip=clip)))
    assert "2 of 3 text encoder layers" in report and f"left out: Layer {paths[1]}" in report
    with pytest.raises(ValueError, match="2 of the 2 layers"):
        bad = dict.fromkeys(paths[:2], layers[paths[1]])
        apply_to_clip(clip, Stack.of(Slider("x", bad)))
