"""The example workflows on a running server: a slider is trained, saved, used, and its training cancelled."""

import time
from functools import partial
from pathlib import Path

import pytest
from concept_sliders.cli.live import run_live
from concept_sliders.devtools.server import PACK, reported, saved_as
from concept_sliders.devtools.workflow import add, change, named
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
CELL, GAP = 128, 4
SAVED = "sliders/pocket_age.safetensors"


def loras(server):
    return server.base / "models" / "loras"


def shown(server, prompt, entry, node):
    """The picture that a node showed."""
    (image,) = entry["outputs"][named(prompt, node)[0]]["images"]
    return Image.open(server.base / image["type"] / image["subfolder"] / image["filename"])


def saved_file(prompt, entry):
    (file,) = saved_as({"outputs": {node: entry["outputs"][node] for node in named(prompt, "Save Slider")}})
    return file


def cancel_after_a_step(server, moment):
    if moment.title == "Train Slider" and moment.done == 1:
        time.sleep(1)  # the host's progress bar tells of the first step, and then of every 500th
        server.interrupt()


def cached(entry):
    """The nodes that did not run again."""
    told = dict(entry["status"]["messages"])
    return set(told["execution_cached"]["nodes"])


def test_the_examples_are_in_the_template_browser_with_their_pictures(server):
    names = {path.stem for path in EXAMPLES.glob("*.json")}
    assert set(server.ask("/api/workflow_templates")[PACK]) == names
    assert {path.stem for path in EXAMPLES.glob("*.jpg")} == names


def test_the_slider_that_comes_with_the_pack_is_loaded_as_the_example_names_it(server, example):
    prompt = example("use_sliders")
    strip = shown(server, prompt, server.wait(server.post(prompt)), "Slider Strip")
    assert strip.width == 3 * (CELL + GAP) + GAP


def test_training_leaves_a_slider_that_describes_itself(server, trained):
    prompt, entry = trained
    assert saved_file(prompt, entry) == SAVED
    info = load_slider(loras(server) / SAVED).info
    assert (info.less, info.more) == ("portrait of a very young person", "portrait of a very old person")
    assert info.recipe["steps_done"] == info.recipe["steps"] == 3
    assert info.recipe["concepts"][0]["preserve"] == ["with glasses", "without glasses"]
    assert info.family and info.base_model_hash
    (train,) = named(prompt, "Train Slider")
    assert info.gate == Gate(0.1)
    assert "it acts where it was trained: from 0.1 to 1 of sampling" in reported(entry, train)


def test_the_sweep_behind_it_is_a_strip_with_a_row_for_each_person(server, trained):
    strip = shown(server, *trained, "Slider Strip")
    assert strip.width == 3 * (CELL + GAP) + GAP
    assert 2 * (CELL + GAP) < strip.height < 2 * (CELL + GAP) + CELL


def test_the_same_graph_again_runs_nothing(server, trained):
    prompt, _ = trained
    entry = server.wait(server.post(prompt))
    assert cached(entry) == set(prompt)
    assert [path.name for path in (loras(server) / "sliders").glob("pocket_age*")] == ["pocket_age.safetensors"]


def test_another_sweep_does_not_train_again(server, trained, example):
    prompt = example("train_a_textual_slider", {"Sweep Sliders": {"values": "0, 2"}})
    entry = server.wait(server.post(prompt))
    assert named(prompt, "Train Slider")[0] in cached(entry)
    assert shown(server, prompt, entry, "Slider Strip").width == 2 * (CELL + GAP) + GAP


@pytest.mark.usefixtures("trained")
def test_the_saved_slider_is_used_by_the_other_workflow(server, example):
    prompt = example("use_sliders", {"Load Slider": {"slider": SAVED}})
    strip = shown(server, prompt, server.wait(server.post(prompt)), "Slider Strip")
    assert strip.width == 3 * (CELL + GAP) + GAP


@pytest.mark.usefixtures("trained")
def test_the_stock_lora_loader_lists_the_slider_and_uses_it(server, example):
    options = server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert SAVED in options
    prompt = example("use_sliders", {"Load Slider": {"slider": SAVED}})
    (model,), (sampler,), (decode,) = (named(prompt, n) for n in ("Load Pocket Model", "KSampler", "VAE Decode"))
    lora = add(
        prompt,
        "LoraLoader",
        model=[model, 0],
        clip=[model, 1],
        lora_name=SAVED,
        strength_model=1.0,
        strength_clip=1.0,
    )
    change(prompt, "CLIPTextEncode", clip=[lora, 1])
    prompt[sampler]["inputs"].update(model=[lora, 0], latent_image=[named(prompt, "EmptyLatentImage")[0], 0])
    for node in ("Slider Strip", "Apply Sliders", "Sweep Sliders", "Gate Sliders", "Load Slider"):
        del prompt[named(prompt, node)[0]]
    save = add(prompt, "SaveImage", images=[decode, 0], filename_prefix="stock")
    entry = server.wait(server.post(prompt))
    assert len(entry["outputs"][save]["images"]) == 2
    said = server.log.read_text(encoding="utf-8", errors="replace")
    assert "lora key not loaded" not in said


def test_a_cancel_in_the_middle_of_training_keeps_a_usable_slider(server, example):
    prompt = example(
        "train_a_textual_slider",
        {
            "Train Slider": {"steps": 100_000, "rollout_steps": 2, "seed": 5},
            "Save Slider": {"name": "sliders/cancelled"},
        },
    )
    entry = run_live(server, prompt, partial(cancel_after_a_step, server))
    file = saved_file(prompt, entry)
    recipe = load_slider(loras(server) / file).info.recipe
    assert recipe["steps"] == 100_000
    assert 1 <= recipe["steps_done"] < 1000
    assert shown(server, prompt, entry, "Slider Strip").width == 3 * (CELL + GAP) + GAP
    used = example("use_sliders", {"Load Slider": {"slider": file}})
    assert shown(server, used, server.wait(server.post(used)), "Slider Strip").size


def test_ten_sliders_at_once_and_a_second_run_with_one_turned(server, example):
    prompt = example("ten_sliders")
    first = server.wait(server.post(prompt))
    (applied,) = named(prompt, "Apply Sliders")
    assert len(reported(first, applied)) == 10
    assert shown(server, prompt, first, "Ten Sliders: Strip").width == 2 * (CELL + GAP) + GAP
    change(prompt, "Smile", strength=-1.0)
    turned = server.wait(server.post(prompt))
    assert named(prompt, "Age")[0] in cached(turned) and named(prompt, "Smile")[0] not in cached(turned)


def test_a_visual_slider_from_the_pairs_of_the_pack(server, example):
    prompt = example("train_a_visual_slider")
    entry = server.wait(server.post(prompt))
    info = load_slider(loras(server) / saved_file(prompt, entry)).info
    assert (info.less, info.more) == ("blue shirt", "red shirt")
    assert info.recipe["sets"] == 6 and info.recipe["method"] == "ADDifT" and info.recipe["steps_done"] == 3
    assert shown(server, prompt, entry, "Slider Strip").width == 3 * (CELL + GAP) + GAP
    assert shown(server, prompt, entry, "Image Pairs from Folder").size


def test_a_slider_is_calibrated_and_saved_with_its_units(server, example):
    prompt = example("calibrate_a_slider")
    entry = server.wait(server.post(prompt))
    lines = reported(entry, *named(prompt, "Calibrate Slider"))
    assert lines[0].startswith("pocket age: ") and shown(server, prompt, entry, "Calibrate Slider").width == 2 * 720
    file = saved_file(prompt, entry)
    assert file == "sliders/pocket_age_calibrated.safetensors"
    calibration = load_slider(loras(server) / file).info.calibration
    assert calibration.measured_by == "age"
    assert max(-calibration.low, calibration.high) == 100  # of the side that goes further


def test_sliders_are_reported_on_before_and_after_they_are_mixed(server, example):
    prompt = example("report_on_sliders")
    entry = server.wait(server.post(prompt))
    before, after = (reported(entry, *named(prompt, title)) for title in ("Before", "After"))
    assert before[0].startswith("pocket age ") and after[0].startswith("pocket age ")
    assert before[-1] == "Saved as measurements/before.json" and after[-1] == "Saved as measurements/after.json"
    mixed = reported(entry, *named(prompt, "Orthogonalised"))
    assert mixed[0] == "Orthogonalised by effect:" and mixed[1].startswith("pocket age: itself")
    assert shown(server, prompt, entry, "Before").height == shown(server, prompt, entry, "After").height


def test_directions_are_found_and_the_one_that_is_picked_is_saved(server, example):
    prompt = example("discover_sliders")
    entry = server.wait(server.post(prompt))
    (picked,) = reported(entry, *named(prompt, "Pick Slider"))
    assert picked.startswith("pocket_direction 1 ")
    slider = load_slider(loras(server) / saved_file(prompt, entry))
    assert slider.info.recipe["kind"] == "direction" and slider.info.recipe["directions"] == 2
    assert shown(server, prompt, entry, "Discover Sliders").width == 5 * (CELL + GAP) + GAP
    assert shown(server, prompt, entry, "Slider Strip").width == 3 * (CELL + GAP) + GAP


def test_a_repair_slider_by_its_recipe_cancelled(server, example):
    prompt = example("train_a_repair_slider")
    entry = run_live(server, prompt, partial(cancel_after_a_step, server))
    recipe = load_slider(loras(server) / saved_file(prompt, entry)).info.recipe
    assert recipe["concepts"][0]["less"] == "portrait of a person, badly drawn, distorted features"
    assert recipe["steps"] == 200 and 1 <= recipe["steps_done"] < 200
    assert shown(server, prompt, entry, "Slider Strip").width == 3 * (CELL + GAP) + GAP
