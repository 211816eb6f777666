"""Moving what no caption names: a generator's edit, rendered as pairs, becomes a slider of the model."""

import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.world import shirt_pairs
from concept_sliders.pocket.world.captions import vocabulary
from concept_sliders.pocket.world.portrait import BINARY, CONTINUOUS
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.recipe import VisualRecipe
from concept_sliders.training.run import train_visual
from concept_sliders.training.visual_samples import encode_sets

import nodes

FOLDER = shirt_pairs.FOLDER / "pocket_shirt"
STRENGTHS, PEOPLE = (-2.0, 0.0, 2.0), 6


def test_the_pairs_of_the_pack_differ_in_the_shirt_alone():
    for pair in read_pairs(FOLDER):
        less, more = pair.images
        changed = (less - more).abs().amax(-1) > 0.02
        assert not changed[: shirt_pairs.SHIRT[0].start - 8].any()
        assert shirt_pairs.redness(less[None]) < -0.3 and shirt_pairs.redness(more[None]) > 0.3


def test_they_are_those_that_the_command_draws(tmp_path):
    shirt_pairs.store(tmp_path)
    for drawn, shipped in zip(read_pairs(tmp_path), read_pairs(FOLDER), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(drawn.images, shipped.images))
        assert drawn.prompt == shipped.prompt == shirt_pairs.PROMPT


def test_no_caption_has_a_word_for_it():
    assert not {"shirt", "dress", "red", "blue"} & {*vocabulary()}


def test_redness_reads_the_hue_whoever_wears_it():
    people = shirt_pairs.models(20, seed=4)
    blue, red = (shirt_pairs.redness(shirt_pairs.as_images(shirt_pairs.dressed(people, hue))) for hue in (0.62, 0.02))
    assert blue.max() < -0.3 and red.min() > 0.3


@pytest.mark.slow
def test_a_slider_from_the_pairs_turns_the_shirt_and_leaves_what_the_probe_reads():
    """Behind a gate: from the first step on, far out, red lips come along, which are read as a woman's."""
    with torch.inference_mode():
        model, clip, vae, _ = load_pocket()
        said = {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in (shirt_pairs.PROMPT, "")}
        sets = encode_sets(read_pairs(FOLDER), vae.encode, model.model.process_latent_in)
        recipe = VisualRecipe(method="ADDifT", steps=150, sets=len(sets))
        slider = train_visual(model, said, recipe, sets, "shirt").slider
        batch_size = PEOPLE * len(STRENGTHS)
        latent = {
            "samples": torch.zeros(batch_size, 8, 16, 16),
            "batch_index": [r // len(STRENGTHS) for r in range(batch_size)],
        }
        swept = apply_sliders(model, Stack.of(slider, 1.0, Gate(0.1)).swept(0, STRENGTHS, PEOPLE))
        positive, negative = said[shirt_pairs.PROMPT], said[""]
        made = nodes.common_ksampler(swept, 77, 10, 3.0, "euler", "simple", positive, negative, latent)[0]
        images = vae.decode(made["samples"])
    red = shirt_pairs.redness(images).view(PEOPLE, -1).mean(0)
    assert red[0] < red[1] < red[2] and red[2] - red[0] > 0.3, red
    readings = load_probe().read(images).values.view(PEOPLE, len(STRENGTHS), -1).mean(0)
    named = [COLUMNS.index(name) for name in (*CONTINUOUS, *BINARY)]
    assert (readings[2] - readings[0]).abs()[named].mean() < 0.05
