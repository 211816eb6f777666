"""What sliders and edits rest on: measured by turning one, on generated people and on inverted drawings."""

import pytest
import torch
from concept_sliders.nodes.model_folders import SHIPPED
from concept_sliders.pocket.measuring import turnable
from concept_sliders.pocket.measuring.probe import COLUMNS, Readings, load_probe
from concept_sliders.pocket.measuring.report import Models
from concept_sliders.pocket.measuring.sampling import Sampling
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.formats.slider_files import load_slider


@pytest.fixture(scope="module")
def models():
    with torch.inference_mode():
        *pocket, vision = load_pocket()
    return Models(tuple(pocket), vision, load_probe())


@pytest.fixture(scope="module")
def age():
    return load_slider(SHIPPED / "pocket_age.safetensors")


def test_people_are_older_at_a_higher_strength_and_what_stays_is_counted(models, age):
    shown = turnable.turned(models, age, 2, Sampling(steps=6))
    assert shown.figures["age at +1"] > shown.figures["age at -1"] + 0.1
    assert list(shown.images) == ["-1", "-0.5", "+0", "+0.5", "+1"] and 0 <= shown.figures["stays"] <= 1


def test_a_drawing_is_edited_and_reconstructed(models, age, monkeypatch):
    monkeypatch.setattr(turnable, "SAMPLING_STEPS", 6)
    shown = turnable.edited(models, age, "age", 1)
    assert shown.figures["dB, null-text"] > shown.figures["dB, VAE round trip"] - 8
    assert shown.figures["age at +1"] > shown.figures["age at -1"]


def test_people_with_another_hat_are_not_the_same():
    """The hat differs in the first of two people."""
    bare, hatted = torch.zeros(2, len(COLUMNS)), torch.zeros(2, len(COLUMNS))
    hatted[0, COLUMNS.index("hat")] = 1.0
    assert Readings(bare).same_person(Readings(hatted)).tolist() == [False, True]
