"""Audition Slider on the pocket model: what it makes of concepts, and of people."""

import pytest
import torch
from concept_sliders.nodes.auditioning import AuditionSlider, encode_contrasts
from concept_sliders.pocket.model import load_pocket
from concept_sliders.pocket.probe import load_probe
from concept_sliders.training.concept import Concept

import nodes

PEOPLE = 4


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()


def test_concepts_of_one_slider_count_by_their_weights_and_erasing_turns_them_around(pocket):
    _, clip, _ = pocket
    age = Concept("", "very old person", "very young person", ("man", "woman"), 0.4, weight=3.0)
    smile = Concept("", "laughing person", "frowning person", (), 0.8, erase=True)
    first, second = encode_contrasts(clip, (age, smile))
    assert (first.eta, second.eta) == (pytest.approx(0.3), pytest.approx(-0.2))
    assert (len(first.more), len(first.less), len(second.more)) == (2, 2, 1)
    expected = nodes.CLIPTextEncode().encode(clip, "very old person, woman")[0]
    assert torch.equal(first.more[1][0][0], expected[0][0])


def test_it_turns_what_the_concept_says(pocket):
    """The age of a few people of the pocket model, through the node, with glasses preserved."""
    ends = (f"portrait of a very {age} person" for age in ("old", "young"))
    concept = Concept("portrait of a person", *ends, ("with glasses", "without glasses"), 0.45)
    model, clip, vae = pocket
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (concept.target, ""))
        readings = {}
        for strength in (-1.0, 0.0, 1.0):
            heard = AuditionSlider.execute(model, clip, (concept,), strength, 0.1, 1.0, 0.0)[0]
            latent = {"samples": torch.zeros(PEOPLE, 24, 16, 16)}
            out = nodes.common_ksampler(heard, 77, 8, 3.0, "euler", "simple", positive, negative, latent)[0]
            readings[strength] = float(load_probe().read(vae.decode(out["samples"]))["age"].mean())
    assert readings[0.0] - readings[-1.0] > 0.1 and readings[1.0] - readings[0.0] > 0.1, readings


def test_a_gate_that_closes_before_it_opens_is_refused():
    with pytest.raises(ValueError, match=r"start 0.8 and end 0.3"):
        AuditionSlider.execute(None, None, (), 1.0, 0.8, 0.3, 0.0)
