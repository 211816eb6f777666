"""Training from the command line: the same sliders as in the graph, from JSON or from a slider's own file."""

import os
import signal
import threading
import time

import comfy.model_management
import pytest
import torch
from concept_sliders.nodes.training import TrainSlider, TrainVisualSlider
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.tests.support.train_command import CONCEPT, SMALL, drawn_pairs, recipe_file, same
from concept_sliders.training.concept import Concept
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.run import PROJECT
from PIL import Image


def test_a_slider_is_trained_again_from_its_own_file(train_command, tmp_path):
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    assert train_command(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", first)[0] == 0
    assert train_command(first, "--out", again)[0] == 0
    one, other = load_slider(first), load_slider(again)
    assert one.info.recipe["versions"]["comfyui"] and one.info.recipe["steps_done"] == 3
    assert f'\nversion = "{one.info.recipe["versions"]["concept_sliders"]}"\n' in PROJECT.read_text(encoding="utf-8")
    assert all(torch.equal(one.layers[name].up, layer.up) for name, layer in other.layers.items())


def test_a_visual_recipe_takes_a_folder_of_pairs(train_command, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for index, person in enumerate(portraits(2, seed=3)):
        for strength, smile in ((-1, 0.1), (1, 0.9)):
            Image.fromarray(draw(person.with_(smile=smile))).save(pairs / f"{index}_{strength}.png")
    recipe, out = (
        recipe_file(tmp_path, kind="visual", method="ADDifT", more="smile", steps=2),
        tmp_path / "s.safetensors",
    )
    code, said = train_command(recipe, "--out", out)
    assert code == 1 and "--pairs FOLDER" in said and not out.exists()
    assert train_command(recipe, "--out", out, "--pairs", pairs)[0] == 0
    assert load_slider(out).info.more == "smile"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "holds no recipe"),
        ({"concepts": [CONCEPT], "steps": 0}, "steps must be at least 1"),
        ({"a": 1}, "has no a"),
        ({"concepts": [{**CONCEPT, "preserve": "male"}]}, "preserve must be a list of texts, got 'male'"),
        ({"concepts": [{**CONCEPT, "more": 5}]}, "more must be a text, got 5"),
        ({"concepts": [CONCEPT], "rank": 4.5}, "rank must be a whole number, got 4.5"),
        ({"concepts": [CONCEPT], "both_signs": "no"}, "both_signs must be true or false, got 'no'"),
        ({"concepts": [CONCEPT], "batch": "two"}, "batch must be a whole number, got 'two'"),
        ({"concepts": [CONCEPT], "batch": 0}, "batch must be at least 1, got 0"),
        ({"concepts": [CONCEPT], "latent_shape": [4, 64.5, 64]}, "latent_shape must be a list of whole numbers"),
        ({"concepts": [CONCEPT], "latent_shape": [64, 64]}, "channels, height and width or more, got [64, 64]"),
        ({"concepts": [CONCEPT], "scenes": "a person"}, "scenes must be a list of texts, got 'a person'"),
        ({"concepts": [CONCEPT], "kind": []}, "one of textual, visual, encoder; got []"),
    ],
)
def test_what_cannot_be_trained_is_said(train_command, tmp_path, values, says):
    code, said = train_command(recipe_file(tmp_path, **values), "--out", tmp_path / "s.safetensors")
    assert code == 1 and says in said
    assert not (tmp_path / "s.safetensors").exists()


def test_a_file_that_is_there_is_not_overwritten(train_command, tmp_path):
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    code, said = train_command(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", out)
    assert code == 1 and "is there already" in said and out.read_bytes() == b"mine"


def test_a_slider_of_the_graph_is_trained_again_as_it_was(train_command, tmp_path):
    """At its own size, two images a step, to the bit."""
    made, again = tmp_path / "made.safetensors", tmp_path / "again.safetensors"
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
        latent = {"samples": torch.zeros(2, 8, 8, 12)}
        out = TrainSlider.execute(model, clip, (Concept(**CONCEPT),), latent, "age", **SMALL)
    save_slider(out.args[0].sliders[0].slider, made)
    assert train_command(made, "--out", again)[0] == 0
    one, other = load_slider(made), load_slider(again)
    assert one.info.recipe["batch"] == 2 and one.info.recipe["latent_shape"] == [8, 8, 12]
    assert other.info.recipe == one.info.recipe
    assert same(one, other)
    single = tmp_path / "single.safetensors"
    assert train_command(made, "--out", single, "--batch", 1)[0] == 0
    assert load_slider(single).info.recipe["batch"] == 1 and not same(load_slider(single), other)


def test_a_visual_slider_of_the_graph_is_trained_again_and_other_images_are_noticed(train_command, tmp_path):
    pairs, others = drawn_pairs(tmp_path / "pairs"), drawn_pairs(tmp_path / "others", seed=4)
    made, again = tmp_path / "made.safetensors", tmp_path / "again.safetensors"
    with torch.inference_mode():
        read = read_pairs(pairs, prompt="portrait of a person", side=64)
        out = TrainVisualSlider.execute(*load_pocket()[:3], read, "smile", steps=2, rank=2)
    save_slider(out.args[0].sliders[0].slider, made)
    code, said = train_command(made, "--out", again, "--pairs", pairs)
    assert code == 0 and "Note:" not in said
    one, other = load_slider(made), load_slider(again)
    assert one.info.recipe["scenes"] == ["portrait of a person"] and other.info.recipe == one.info.recipe
    assert same(one, other)
    code, said = train_command(made, "--out", tmp_path / "other.safetensors", "--pairs", others)
    assert code == 0 and "Note: these are not the images" in said


def test_a_recipe_of_a_text_encoder_slider(train_command, tmp_path):
    out = tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="encoder", concepts=[CONCEPT], steps=2, rank=2)
    assert train_command(recipe, "--out", out)[0] == 0
    slider = load_slider(out)
    assert slider.info.recipe["kind"] == "encoder" and all(name.startswith("lora_te") for name in slider.layers)


def test_ctrl_c_stops_and_what_was_learned_is_written(train_command, tmp_path):
    out, before = tmp_path / "s.safetensors", signal.getsignal(signal.SIGINT)

    def press():
        end = time.monotonic() + 60
        while not list(tmp_path.glob("kept/*.pt")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    settings = {**SMALL, "steps": 100_000, "rank": 1}
    code, said = train_command(
        recipe_file(tmp_path, concepts=[CONCEPT], **settings), "--out", out, "--checkpoints", tmp_path / "kept"
    )
    pressing.join()
    done = load_slider(out).info.recipe["steps_done"]
    assert code == 1 and 100 <= done < 1000 and f"Stopped after step {done} of 100000" in said
    assert signal.getsignal(signal.SIGINT) is before and not comfy.model_management.processing_interrupted()


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '"a person"', '{"concepts": ["old"]}', '{"concepts": 3}', "{"])
def test_json_that_is_no_recipe_is_said_to_be_none(train_command, tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    code, said = train_command(path, "--out", tmp_path / "s.safetensors")
    assert code == 1 and said.startswith(f"error: {path} holds no recipe: ")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--batch", "0", "--batch: must be a whole number, at least 1, got '0'"),
        ("--batch", "-1", "--batch: must be a whole number, at least 1, got '-1'"),
        ("--batch", "two", "--batch: must be a whole number, at least 1, got 'two'"),
        ("--size", "0", "--size: must be at least 16 and a multiple of 8, got '0'"),
        ("--size", "-64", "--size: must be at least 16 and a multiple of 8, got '-64'"),
        ("--size", "5", "got '5'"),
        ("--size", "8", "got '8'"),
        ("--size", "100", "got '100'"),
    ],
)
def test_sizes_and_numbers_of_images_that_cannot_be(train_command, tmp_path, capsys, option, value, says):
    recipe = recipe_file(tmp_path, concepts=[CONCEPT], **SMALL)
    with pytest.raises(SystemExit) as ended:
        train_command(recipe, "--out", tmp_path / "s.safetensors", option, value)
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(("size", "side"), [(16, 2), (24, 3), (64, 8), (72, 9)])
def test_any_size_that_is_allowed_is_the_one_trained_at(train_command, tmp_path, size, side):
    out = tmp_path / "s.safetensors"
    code, said = train_command(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", out, "--size", size)
    assert code == 0, said
    assert load_slider(out).info.recipe["latent_shape"] == [8, side, side]
