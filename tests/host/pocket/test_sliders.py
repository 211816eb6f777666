"""The sliders that come with the pack: every one turns what its name says, and they do so together."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.identity import family, weights_hash
from concept_sliders.pocket.measuring.probe import Readings, load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.train_sliders import BATCH, FOLDER, LESSONS, PERSON
from concept_sliders.pocket.world.captions import vocabulary
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.recipe import recipe_from

import nodes

PEOPLE = 6


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


def readings(pocket, stack: Stack) -> Readings:
    """The probe's readings of a few people, rows strength by strength where the stack is swept."""
    model, clip, vae = pocket
    rows = stack.batch_size if len(stack) else 1
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PERSON, ""))
        count = max(PEOPLE, rows)
        batch_index = [row // (count // PEOPLE) for row in range(count)]
        latent = {"samples": torch.zeros(count, 8, 16, 16), "batch_index": batch_index}
        acted = apply_sliders(model, stack)
        out = nodes.common_ksampler(acted, 77, 12, 3.0, "euler", "simple", positive, negative, latent)[0]
        return load_probe().read(vae.decode(out["samples"]))


@pytest.mark.parametrize("name", LESSONS)
def test_a_slider_turns_what_its_name_says(pocket, name):
    slider = load_slider(FOLDER / f"pocket_{name}.safetensors")
    lesson = LESSONS[name]
    assert (slider.info.more, slider.info.less) == (lesson.more, lesson.less)
    low, high = slider.info.useful_range
    swept = Stack.of(slider).swept(0, (low, high), PEOPLE).gated(slider.info.gate)
    low_end, high_end = readings(pocket, swept)[lesson.column].view(PEOPLE, 2).mean(0)
    assert float(high_end - low_end) * (-1 if lesson.column == "spoiled" else 1) > 0.3


def test_their_headers_name_the_model_that_comes_with_them(pocket):
    for path in FOLDER.glob("*.safetensors"):
        info = load_slider(path).info
        assert info.base_model_hash == weights_hash(pocket[0]) and info.family == family(pocket[0]), path.name
        assert info.recipe["batch"] == BATCH and recipe_from(info.recipe).steps == info.recipe["steps_done"]


def test_all_of_them_at_once(pocket):
    """Ten sliders in one stack: each still turns its own attribute, half way up."""
    stack = sum((Stack.of(load_slider(FOLDER / f"pocket_{name}.safetensors"), 0.8) for name in LESSONS), Stack())
    up, bare = readings(pocket, stack), readings(pocket, Stack())
    columns = {name: lesson.column for name, lesson in LESSONS.items() if name != "repair"}
    moved = {name: float((up[column] - bare[column]).mean()) for name, column in columns.items()}
    assert sum(value > 0 for value in moved.values()) >= 8, moved


def test_their_prompts_are_words_the_model_knows():
    words = vocabulary()
    for lesson in LESSONS.values():
        for prompt in lesson.recipe.prompts():
            assert all(word in words for word in prompt.replace(",", " ").split()), prompt
