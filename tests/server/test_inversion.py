"""Inverting and editing on a running server: the example, an inversion kept in a file, and a run that is not its."""

import pytest
from concept_sliders.devtools.server import ServerError
from concept_sliders.devtools.workflow import add, change, named
from PIL import Image

CELL, GAP = 128, 4
NODE = "Invert Image (Null-Text)"


def strip(server, prompt, entry):
    (image,) = entry["outputs"][named(prompt, "Slider Strip")[0]]["images"]
    return Image.open(server.base / image["type"] / image["subfolder"] / image["filename"])


@pytest.fixture(scope="module")
def edited(server, example):
    """(the example as it was posted, with its inversion saved, and its history entry), run once."""
    prompt = example("edit_a_real_image")
    add(prompt, "ConceptSlidersSaveInversion", inversion=[named(prompt, NODE)[0], 4], name="people/first")
    return prompt, server.wait(server.post(prompt))


def test_a_picture_is_inverted_and_a_slider_turned_on_it(server, edited):
    prompt, entry = edited
    assert strip(server, prompt, entry).width == 3 * (CELL + GAP) + GAP
    (report,) = entry["outputs"][named(prompt, NODE)[0]]["text"]
    assert report.startswith("1 picture, null-text, 3 steps of simple, cfg 3") and "step 3: loss" in report


def test_the_saved_inversion_makes_the_same_strip(server, example, edited):
    prompt = example("edit_a_real_image")
    (inverting,) = named(prompt, NODE)
    load = add(prompt, "ConceptSlidersLoadInversion", file="people/first.safetensors")
    change(prompt, "Sweep Sliders", latent=[load, 0])
    change(prompt, "SamplerCustom", negative=[load, 1], sigmas=[load, 2])
    del prompt[inverting]
    again = strip(server, prompt, server.wait(server.post(prompt)))
    assert again.tobytes() == strip(server, *edited).tobytes()


def test_a_sampler_that_does_not_fit_is_told_why(server, example):
    prompt = example("edit_a_real_image", {"KSamplerSelect": {"sampler_name": "dpmpp_2m"}})
    with pytest.raises(ServerError, match="An inversion is undone by the sampler euler alone"):
        server.wait(server.post(prompt))
