"""Audition Slider on the pocket model: what it makes of concepts, and of people."""

import json

import pytest
import torch
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.nodes.auditioning import AuditionSlider, encode_contrasts, with_etas
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.training.concept import Concept
from concept_sliders.training.eta_choice import ETAS
from concept_sliders.training.recipe import TextualRecipe, recipe_from, run_record_from
from concept_sliders.training.run import train_textual

import nodes

PEOPLE = 4


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


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
            latent = {"samples": torch.zeros(PEOPLE, 8, 16, 16)}
            out = nodes.common_ksampler(heard, 77, 8, 3.0, "euler", "simple", positive, negative, latent)[0]
            readings[strength] = float(load_probe().read(vae.decode(out["samples"]))["age"].mean())
    assert readings[0.0] - readings[-1.0] > 0.1 and readings[1.0] - readings[0.0] > 0.1, readings


def test_a_gate_that_closes_before_it_opens_is_refused():
    with pytest.raises(ValueError, match=r"start 0.8 and end 0.3"):
        AuditionSlider.execute(None, None, (), 1.0, 0.8, 0.3, 0.0)


def test_an_eta_of_0_is_chosen_as_training_would_and_needs_a_size(pocket):
    model, clip, _ = pocket
    concept = Concept("portrait of a person", "portrait of a very old person", "portrait of a very young person")
    with pytest.raises(ValueError, match=r"eta is 0, for automatic.*connect a latent of the size"):
        AuditionSlider.execute(model, clip, (concept,), 1.0, 0.2, 1.0, 0.0)
    with torch.inference_mode():
        (chosen,), report = with_etas(model, clip, (concept,), {"samples": torch.zeros(1, 8, 4, 4)})
        recipe = TextualRecipe(concepts=(concept,), steps=1, samples_per_rollout=1, layers="self-attention")
        conditionings = encode_prompts(clip, recipe.prompts())
        record = train_textual(model, conditionings, recipe, torch.zeros(1, 8, 4, 4), "age").slider.info.recipe
    assert record["etas"] == [chosen.eta] and chosen.eta in ETAS
    assert f"eta {chosen.eta:.3g}, automatic: moves the image by {record['audition_moved'][0]:.0%}" in report.text
    assert set(record["reached"]) == {"part +1", "beside +1", "part -1", "beside -1"}
    from_file = json.loads(json.dumps(dict(record)))
    assert recipe_from(from_file) == recipe and run_record_from(from_file).etas == (chosen.eta,)
