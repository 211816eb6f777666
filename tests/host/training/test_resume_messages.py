"""What a run says of the checkpoints that it finds: that it goes on from one, or why it begins anew."""

import logging

import pytest
import torch
from concept_sliders.tests.support.short_runs import CONCEPT, train_on
from concept_sliders.training import resume
from concept_sliders.training.recipe import EncoderRecipe
from concept_sliders.training.run import RunOptions, train_text_encoder


@pytest.fixture
def said(pocket, tmp_path, caplog):
    """said(**settings): what such a run, whose checkpoints are kept, says as it begins."""
    train = train_on(pocket[0], pocket[1])

    def run(**settings):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train(RunOptions(checkpoints=tmp_path), **{"rank": 1, **settings})
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Training '")]

    return run


def test_that_it_goes_on_and_from_which_file(said, tmp_path):
    assert said(steps=2) == []  # there is nothing to be said where nothing is kept
    (file,) = tmp_path.iterdir()
    assert said(steps=3) == [f"Training 'age' goes on from step 2 of 3, kept in {file}"]
    assert said(steps=3) == [f"Training 'age' goes on from step 3 of 3, kept in {file}"]


def test_that_it_begins_anew_since_something_is_another(said):
    said(steps=2)
    (line,) = said(steps=2, seed=7)
    assert line.startswith("Training 'age' begins anew: of what ") and "something that decides the steps" in line
    assert "goes on from step 2 of 2" in said(steps=2, seed=7)[0]


def test_that_it_begins_anew_since_a_longer_run_is_kept(said, tmp_path):
    said(steps=3)
    (file,) = tmp_path.iterdir()
    assert said(steps=2) == [f"Training 'age' begins anew: what {file} keeps is of 3 steps"]
    assert "goes on from step 2 of 2" in said(steps=2)[0]


def test_runs_of_the_text_encoder_say_so_too(pocket, tmp_path, caplog):
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        for steps in (1, 2):
            recipe = EncoderRecipe(concepts=(CONCEPT,), steps=steps, rank=1)
            train_text_encoder(pocket[1], recipe, "age", RunOptions(checkpoints=tmp_path))
    assert "Training 'age' goes on from step 1 of 2" in caplog.text


@pytest.mark.parametrize(
    ("file", "another"),
    [
        ("age 0123456789abcdef", True),
        ("age 0123456789abcdef 20 steps", True),
        ("age fedcba9876543210", False),  # its own
        ("age fedcba9876543210 20 steps", False),
        ("age of cars 0123456789abcdef", False),
        ("old age 0123456789abcdef", False),
        ("age", False),
    ],
)
def test_checkpoints_of_that_name_and_no_other_are_meant(tmp_path, file, another):
    (tmp_path / f"{file}.pt").touch()
    assert resume.is_another_kept(tmp_path, "age", "fedcba9876543210") == another


def test_a_folder_that_is_not_there_keeps_none(tmp_path):
    assert not resume.is_another_kept(tmp_path / "none", "age", "fedcba9876543210")
