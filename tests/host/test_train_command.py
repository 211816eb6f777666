"""Training from the command line: the same sliders as in the graph, from JSON or from a slider's own file."""

import json
import sys

import pytest
import torch
from concept_sliders.pocket.drawing import draw
from concept_sliders.pocket.world import portraits
from concept_sliders.sliders.files import load_slider
from concept_sliders.training import command
from PIL import Image

CONCEPT = {"target": "portrait of a person", "more": "very old person", "less": "very young person"}
SMALL = {"steps": 3, "rollout_steps": 2, "rank": 2}


@pytest.fixture
def run(monkeypatch, capsys):
    def command_line(*arguments):
        monkeypatch.setattr(sys, "argv", ["dev.py train", *map(str, arguments)])
        return command.main(), capsys.readouterr().err

    return command_line


def recipe_file(folder, **values):
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return path


def test_a_slider_is_trained_again_from_its_own_file(run, tmp_path):
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    assert run(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", first)[0] == 0
    assert run(first, "--out", again)[0] == 0
    one, other = load_slider(first), load_slider(again)
    assert one.info.recipe["versions"]["comfyui"] and one.info.recipe["steps_done"] == 3
    assert all(torch.equal(one.layers[name].up, layer.up) for name, layer in other.layers.items())


def test_a_visual_recipe_takes_a_folder_of_pairs(run, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for index, person in enumerate(portraits(2, seed=3)):
        for strength, smile in ((-1, 0.1), (1, 0.9)):
            Image.fromarray(draw(person.with_(smile=smile))).save(pairs / f"{index}_{strength}.png")
    recipe, out = (
        recipe_file(tmp_path, kind="visual", method="ADDifT", more="smile", steps=2),
        tmp_path / "s.safetensors",
    )
    code, said = run(recipe, "--out", out)
    assert code == 1 and "--pairs FOLDER" in said and not out.exists()
    assert run(recipe, "--out", out, "--pairs", pairs)[0] == 0
    assert load_slider(out).info.more == "smile"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "holds no recipe"),
        ({"concepts": [CONCEPT], "steps": 0}, "steps must be at least 1"),
        ({"a": 1}, "has no a"),
    ],
)
def test_what_cannot_be_trained_is_said(run, tmp_path, values, says):
    code, said = run(recipe_file(tmp_path, **values), "--out", tmp_path / "s.safetensors")
    assert code == 1 and says in said
    assert not (tmp_path / "s.safetensors").exists()


def test_a_file_that_is_there_is_not_overwritten(run, tmp_path):
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    code, said = run(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", out)
    assert code == 1 and "is there already" in said and out.read_bytes() == b"mine"
