"""Conversions there and back on every family, and the table of the names that exist."""

import os
from pathlib import Path

import pytest
import torch
from concept_sliders.comfy_host.layer_conversion import converted_layers
from concept_sliders.sliders.formats.conventions import DIFFUSERS, KOHYA, NATIVE
from concept_sliders.sliders.formats.layer_names import comfyui_names
from concept_sliders.sliders.slider import Slider
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import random_slider

PAGE = Path(__file__).parents[3] / "docs" / "conversions.md"
HEAD = """# Names that Convert Slider can write

A slider of all layers of each family's model, converted with the model connected.
`tests/host/sliders/test_conversions.py` converts them there and back and makes this table; with
`CONCEPT_SLIDERS_WRITE_TABLES=1` it writes the file anew.

- **kohya**, **diffusion_model.**: every layer has such a name, on every family.
- **diffusers**: how many of the layers have a name that ComfyUI reads; a conversion of others is refused, with their
  names. Where it is "none", ComfyUI knows no diffusers names for the family: use `diffusion_model.`.

| family | kohya | diffusion_model. | diffusers |
| --- | --- | --- | --- |
"""


@pytest.fixture(scope="module")
def said():
    """What was found for each family, filled in by the tests."""
    return {}


def products(layers):
    return {name: layer.up.flatten(1) @ layer.down.flatten(1) for name, layer in layers.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, said):
    model = FAMILIES[family].build()
    slider = random_slider(model)
    native = converted_layers(slider, NATIVE, model)
    kohya = converted_layers(slider, KOHYA, model)
    assert len(native) == len(kohya) == len(slider.layers)
    assert all(name.startswith("diffusion_model.") for name in native)
    assert all(name.startswith("lora_unet_") for name in kohya)
    first = products(kohya)
    assert same(first, products(converted_layers(Slider("native", native), KOHYA, model)))
    named, unnamed = {}, []
    for name, layer in slider.layers.items():
        try:
            named |= converted_layers(Slider("one", {name: layer}), DIFFUSERS, model)
        except ValueError as error:
            assert f"{name} (LoRA). All of them have names in 'kohya' and in 'diffusion_model.'" in str(error)
            unnamed.append(name)
    read = {known: named[name] for name, known in comfyui_names(named).items()}
    if read:
        back = products(converted_layers(Slider("diffusers", read), KOHYA, model))
        without = Slider("one", {name: layer for name, layer in slider.layers.items() if name not in unnamed})
        assert same(back, products(converted_layers(without, KOHYA, model)))
    if unnamed:
        with pytest.raises(ValueError, match=f"^{len(unnamed)} of the slider's {len(slider.layers)}") as caught:
            converted_layers(slider, DIFFUSERS, model)
        assert all(f"{name} (LoRA)" in str(caught.value) for name in unnamed[:50])
    have = len(slider.layers) - len(unnamed)
    count = "all" if not unnamed else f"{have} of {len(slider.layers)}" if have else "none"
    said[family] = f"| {family} | all | all | {count} |"


def test_table_is_up_to_date(said):
    if said.keys() != FAMILIES.keys():
        pytest.skip("the table takes the tests of all families")
    page = HEAD + "\n".join(said.values()) + "\n"
    if os.environ.get("CONCEPT_SLIDERS_WRITE_TABLES") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
