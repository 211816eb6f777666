"""Inverting and editing on a running server: the example, an inversion kept in a file, and a run that is not its.

And an inversion that is cancelled, and the same graph queued again.
"""

import io
import time

import numpy as np
import pytest
import torch
from concept_sliders.cli.live import run_live
from concept_sliders.devtools.server import ServerError, reported, saved_as
from concept_sliders.devtools.workflow import add, change, named
from concept_sliders.inversion.inversion_files import load_inversion
from concept_sliders.tests.server.listening import listening
from PIL import Image

CELL, GAP = 128, 4
NODE = "Invert Image (Null-Text)"


def strip(server, prompt, entry):
    (image,) = entry["outputs"][named(prompt, "Slider Strip")[0]]["images"]
    return Image.open(server.base / image["type"] / image["subfolder"] / image["filename"])


@pytest.fixture(scope="module")
def edited(server, example):
    """(the example as it was posted, with its inversion saved, its history entry, what was told), run once."""
    prompt, told = example("edit_a_real_image"), []
    add(prompt, "ConceptSlidersSaveInversion", inversion=[named(prompt, NODE)[0], 4], name="people/first")
    return prompt, run_live(server, prompt, told.append), told


def test_previews_show_the_picture_that_it_heads_for(edited):
    pictures = [moment.preview for moment in edited[2] if moment.title == NODE and moment.preview]
    shown = np.asarray(Image.open(io.BytesIO(pictures[0])).convert("L"), dtype=float)
    assert shown.shape[1] > 100 and shown.std() > 10  # a strip with something on it
    steps = [moment.done for moment in edited[2] if moment.title == NODE and moment.of]
    assert steps == sorted(steps) and steps[-1] == 6  # three up and three down


def test_a_picture_is_inverted_and_a_slider_turned_on_it(server, edited):
    prompt, entry, _ = edited
    assert strip(server, prompt, entry).width == 3 * (CELL + GAP) + GAP
    settings, error = reported(entry, named(prompt, NODE)[0])
    assert settings == "1 image, null-text, 3 steps of simple, cfg 3" and error.startswith("reconstruction error")


def test_the_saved_inversion_makes_the_same_strip(server, example, edited):
    prompt = example("edit_a_real_image")
    (inverting,) = named(prompt, NODE)
    load = add(prompt, "ConceptSlidersLoadInversion", file="people/first.safetensors")
    change(prompt, "Sweep Sliders", latent=[load, 0])
    change(prompt, "SamplerCustom", negative=[load, 1], sigmas=[load, 2], positive=[load, 5])
    del prompt[inverting]
    again = strip(server, prompt, server.wait(server.post(prompt)))
    assert again.tobytes() == strip(server, *edited[:2]).tobytes()


def test_a_sampler_that_does_not_fit_is_told_why(server, example):
    prompt = example("edit_a_real_image", {"KSamplerSelect": {"sampler_name": "dpmpp_2m"}})
    with pytest.raises(ServerError, match="An inversion is undone by the sampler euler alone"):
        server.wait(server.post(prompt))


STEPS = 6


def inverting(name, seed=1):
    """A graph that inverts one drawing and saves what comes of it; and the id of its node."""
    prompt = {}
    pocket = add(prompt, "ConceptSlidersLoadPocketModel")
    portrait = add(prompt, "ConceptSlidersDrawPortrait", seed=seed, count=1)
    latent = add(prompt, "VAEEncode", pixels=[portrait, 0], vae=[pocket, 2])
    positive, negative = (
        add(prompt, "CLIPTextEncode", text=text, clip=[pocket, 1]) for text in ("portrait of a person", "")
    )
    node = add(
        prompt,
        "ConceptSlidersInvertImage",
        model=[pocket, 0],
        latent=[latent, 0],
        positive=[positive, 0],
        negative=[negative, 0],
        method="null-text",
        steps=STEPS,
        cfg=3.0,
        scheduler="simple",
        refinement=1,
        inner_steps=30,
        learning_rate=0.05,
        tolerance=0.0,
        pooled="held",
    )
    add(prompt, "ConceptSlidersSaveInversion", inversion=[node, 4], name=name)
    return prompt, node


def saved(server, entry):
    (file,) = saved_as(entry)
    return load_inversion(server.base / "models" / "inversions" / file)


def test_a_cancelled_inversion_queued_again_goes_on_and_a_finished_one_is_kept(server):
    prompt, node = inverting("cancelled")
    with listening(server, "inverting") as heard:
        first = server.post(prompt, "inverting")
        end = time.monotonic() + 120
        while not any(done > STEPS for _, done, _ in heard.progress):  # the upward steps, and one down
            assert time.monotonic() < end
            time.sleep(0.02)
        server.interrupt()
        part = saved(server, server.wait(first))
    assert 1 <= part.done < STEPS

    with listening(server, "inverting") as heard:
        entry = server.wait(server.post(prompt, "inverting"))
        whole = saved(server, entry)
    went_on, *_ = reported(entry, node)
    assert went_on.startswith("went on at ") and f"step {part.done + 1} of {STEPS}" in went_on
    assert heard.texts[0] == (node, went_on.removeprefix("went on at "))
    assert whole.done == STEPS and torch.equal(whole.embeddings[: part.done], part.embeddings[: part.done])
    assert min(done for at, done, _ in heard.progress if at == node and done) > STEPS + part.done

    again = server.wait(server.post(prompt, "inverting"))
    assert set(dict(again["status"]["messages"])["execution_cached"]["nodes"]) == set(prompt)
