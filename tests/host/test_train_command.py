"""Training from the command line: the same sliders as in the graph, from JSON or from a slider's own file."""

import json
import os
import re
import signal
import sys
import threading
import time

import comfy.model_management
import pytest
import torch
from concept_sliders.nodes.training import TrainSlider, TrainVisualSlider
from concept_sliders.pocket.drawing import draw
from concept_sliders.pocket.model import load_pocket
from concept_sliders.pocket.world import portraits
from concept_sliders.sliders.files import load_slider, save_slider
from concept_sliders.tests import checkpoint
from concept_sliders.tests.host.tiny_vae import film_vae
from concept_sliders.training import command
from concept_sliders.training.model_files import load_vae
from concept_sliders.training.pair_folders import read_pairs
from concept_sliders.training.recipe import Concept
from concept_sliders.training.run import PROJECT
from PIL import Image
from safetensors.torch import load_file, save_file

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
    assert f'\nversion = "{one.info.recipe["versions"]["concept_sliders"]}"\n' in PROJECT.read_text(encoding="utf-8")
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
        ({"concepts": [{**CONCEPT, "hold": "male"}]}, "hold must be a list of texts, got 'male'"),
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
def test_what_cannot_be_trained_is_said(run, tmp_path, values, says):
    code, said = run(recipe_file(tmp_path, **values), "--out", tmp_path / "s.safetensors")
    assert code == 1 and says in said
    assert not (tmp_path / "s.safetensors").exists()


def test_a_file_that_is_there_is_not_overwritten(run, tmp_path):
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    code, said = run(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", out)
    assert code == 1 and "is there already" in said and out.read_bytes() == b"mine"


def same(one, other):
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(one.layers[name].up, layer.up) and torch.equal(one.layers[name].down, layer.down)
        for name, layer in other.layers.items()
    )


def test_a_slider_of_the_graph_is_trained_again_as_it_was(run, tmp_path):
    """At its own size, two pictures a step, to the bit."""
    made, again = tmp_path / "made.safetensors", tmp_path / "again.safetensors"
    with torch.inference_mode():
        model, clip, _ = load_pocket()
        latent = {"samples": torch.zeros(2, 24, 8, 12)}
        out = TrainSlider.execute(model, clip, (Concept(**CONCEPT),), latent, "age", 0.0, 1.0, **SMALL)
    save_slider(out.args[0].placed[0].slider, made)
    assert run(made, "--out", again)[0] == 0
    one, other = load_slider(made), load_slider(again)
    assert one.info.recipe["batch"] == 2 and one.info.recipe["latent_shape"] == [24, 8, 12]
    assert other.info.recipe == one.info.recipe
    assert same(one, other)
    single = tmp_path / "single.safetensors"
    assert run(made, "--out", single, "--batch", 1)[0] == 0
    assert load_slider(single).info.recipe["batch"] == 1 and not same(load_slider(single), other)


def drawn_pairs(folder, seed=3):
    folder.mkdir()
    for index, person in enumerate(portraits(2, seed=seed)):
        for strength, smile in ((-1, 0.1), (1, 0.9)):
            Image.fromarray(draw(person.with_(smile=smile))).save(folder / f"{index}_{strength}.png")
    return folder


def test_a_visual_slider_of_the_graph_is_trained_again_and_other_pictures_are_noticed(run, tmp_path):
    pairs, others = drawn_pairs(tmp_path / "pairs"), drawn_pairs(tmp_path / "others", seed=4)
    made, again = tmp_path / "made.safetensors", tmp_path / "again.safetensors"
    with torch.inference_mode():
        read = read_pairs(pairs, prompt="portrait of a person", side=64)
        out = TrainVisualSlider.execute(*load_pocket(), read, "smile", 0.0, 1.0, steps=2, rank=2)
    save_slider(out.args[0].placed[0].slider, made)
    code, said = run(made, "--out", again, "--pairs", pairs)
    assert code == 0 and "Note:" not in said
    one, other = load_slider(made), load_slider(again)
    assert one.info.recipe["scenes"] == ["portrait of a person"] and other.info.recipe == one.info.recipe
    assert same(one, other)
    code, said = run(made, "--out", tmp_path / "other.safetensors", "--pairs", others)
    assert code == 0 and "Note: these are not the pictures" in said


def test_a_recipe_of_a_text_encoder_slider(run, tmp_path):
    out = tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="encoder", concepts=[CONCEPT], steps=2, rank=2)
    assert run(recipe, "--out", out)[0] == 0
    slider = load_slider(out)
    assert slider.info.recipe["kind"] == "encoder" and all(name.startswith("lora_te") for name in slider.layers)


def test_ctrl_c_stops_and_what_was_learned_is_written(run, tmp_path):
    out, before = tmp_path / "s.safetensors", signal.getsignal(signal.SIGINT)

    def press():
        end = time.monotonic() + 60
        while not list(tmp_path.glob("kept/*.pt")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    settings = {**SMALL, "steps": 100_000, "rank": 1}
    code, said = run(
        recipe_file(tmp_path, concepts=[CONCEPT], **settings), "--out", out, "--checkpoints", tmp_path / "kept"
    )
    pressing.join()
    done = load_slider(out).info.recipe["steps_done"]
    assert code == 1 and 100 <= done < 1000 and f"Stopped after step {done} of 100000" in said
    assert signal.getsignal(signal.SIGINT) is before and not comfy.model_management.processing_interrupted()


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '"a person"', '{"concepts": ["old"]}', '{"concepts": 3}', "{"])
def test_json_that_is_no_recipe_is_said_to_be_none(run, tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    code, said = run(path, "--out", tmp_path / "s.safetensors")
    assert code == 1 and said.startswith(f"error: {path} holds no recipe: ")


def test_files_of_parts_are_loaded_and_what_is_missing_is_said(run, tmp_path):
    vae = tmp_path / "vae.safetensors"
    with torch.inference_mode():
        save_file({n: t.contiguous() for n, t in film_vae().first_stage_model.state_dict().items()}, vae)
    assert load_vae(vae).latent_dim == 3
    recipe = recipe_file(tmp_path, concepts=[CONCEPT], **SMALL)
    code, said = run(recipe, "--out", tmp_path / "s.safetensors", "--vae", vae)
    assert code == 1 and "needs a text encoder: give a checkpoint that has one, or --clip FILE" in said
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="none.safetensors holds no VAE"):
        load_vae(tmp_path / "none.safetensors")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A small SD 1 checkpoint, and its parts in files of their own, by the options they are for."""
    folder = tmp_path_factory.mktemp("models")
    named = {part: folder / f"{part}.safetensors" for part in ("checkpoint", "unet", "clip", "vae")}
    tensors, zeros = checkpoint.weights("SD 1")
    checkpoint.write(named["checkpoint"], tensors, zeros)
    whole = load_file(named["checkpoint"])
    for part, prefix in PARTS.items():
        own = {name.removeprefix(prefix): t for name, t in whole.items() if name.startswith(prefix)}
        save_file(own, named[part])
    return named


PARTS = {"unet": "model.diffusion_model.", "clip": "cond_stage_model.transformer.", "vae": "first_stage_model."}
ON_FILES = {"steps": 2, "rank": 1, "learning_rate": 1e-3}


def given(files, *parts):
    return [each for part in parts for each in (f"--{part}", files[part])]


def test_a_checkpoint_and_its_parts_in_files_give_the_same_slider(run, tmp_path, files):
    recipe = recipe_file(tmp_path, concepts=[CONCEPT], rollout_steps=2, **ON_FILES)
    for name, parts in {"whole": ["checkpoint"], "parts": ["unet", "clip"]}.items():
        code, said = run(recipe, "--out", tmp_path / f"{name}.safetensors", "--size", 64, *given(files, *parts))
        assert code == 0, said
    whole, parts = (load_slider(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert same(whole, parts)
    assert whole.info.family == "SD15" and whole.info.recipe["latent_shape"] == [4, 8, 8]
    assert any(layer.up.any() for layer in whole.layers.values())


def test_a_visual_slider_of_a_checkpoint_sees_through_the_vae_that_is_given(run, tmp_path, files):
    pairs, out = drawn_pairs(tmp_path / "pairs"), tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="visual", more="smile", **ON_FILES)
    everything = [recipe, "--out", out, "--pairs", pairs, "--size", 64]
    code, said = run(*everything, *given(files, "unet", "clip"))
    assert code == 1 and "needs a VAE: give a checkpoint that has one, or --vae FILE" in said and not out.exists()
    code, said = run(*everything, *given(files, "unet", "clip", "vae"))
    assert code == 0, said
    assert load_slider(out).info.family == "SD15" and load_slider(out).info.recipe["latent_shape"] == [4, 8, 8]


def test_a_text_encoder_slider_needs_no_diffusion_model(run, tmp_path, files):
    out = tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="encoder", concepts=[CONCEPT], **ON_FILES)
    code, said = run(recipe, "--out", out, *given(files, "clip"))
    assert code == 0, said
    within = [name for name in load_slider(out).layers if name.startswith("lora_te1_text_model_encoder_layers_")]
    assert len(within) == 6 * 12  # attention and both layers of an MLP, of 12 blocks


def test_files_that_are_not_what_they_are_given_for_are_named(run, tmp_path, files):
    recipe, out = recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), tmp_path / "s.safetensors"
    save_file({"a": torch.zeros(1)}, tmp_path / "nothing.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(files["vae"].read_bytes()[:2000])
    (tmp_path / "torn.ckpt").write_bytes(b"no pickle")
    for option, others in {"checkpoint": (), "unet": ("clip",), "clip": ("unet",), "vae": ()}.items():
        for name in ("nothing.safetensors", "torn.safetensors", "torn.ckpt", "lost.safetensors"):
            code, said = run(recipe, "--out", out, f"--{option}", tmp_path / name, *given(files, *others))
            assert code == 1 and re.search(f"^error: .*{name}", said, re.MULTILINE), (option, said)
    assert not out.exists()
