"""Measure Slider on a running server: the example, its files, and a run that is cancelled and queued again."""

import json
import time

import pytest
from concept_sliders.cli.live import run_live
from concept_sliders.devtools.server import reported
from concept_sliders.devtools.workflow import named
from PIL import Image

NODE = "Measure Slider"
FOLDER = "measurements"


def written(server, name):
    return json.loads((server.base / "output" / FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(server, example):
    """(the example as it was posted, its history entry, what was told), run once."""
    prompt, told = example("measure_a_slider"), []
    return prompt, run_live(server, prompt, told.append), told


def test_the_example_shows_a_table_a_sheet_and_plots(server, measured):
    prompt, entry, told = measured
    (node,) = named(prompt, NODE)
    shown, lines = entry["outputs"][node], reported(entry, node)
    assert "effect by delta CLIP, distortion by distance (pocket vision)" in lines[0]
    assert lines[-1] == f"Saved as {FOLDER}/pocket_age.json"
    sizes = [
        Image.open(server.base / image["type"] / image["subfolder"] / image["filename"]).size
        for image in shown["images"]
    ]
    assert sizes[0][0] == 3 * (128 + 4) + 4 and sizes[1:] == [(720, 480)] * 2
    images = [moment.done for moment in told if moment.title == NODE and moment.of]
    assert images == sorted(images) and images[-1] == 6


def test_its_files_hold_every_image(server, measured):
    content = written(server, "pocket_age")
    assert content["cancelled"] is False and len(content["images"]) == 6
    assert (server.base / "output" / FOLDER / "pocket_age.csv").read_text(encoding="utf-8").count("\n") == 4


def test_a_cancelled_run_writes_what_it_has_and_the_same_graph_measures_again(server, example):
    changes = {NODE: {"name": "cut", "seeds": "0:5", "batch_size": 1, "steps": 6}}
    prompt, cancelled = example("measure_a_slider", changes), []

    def cancel(moment):
        if moment.title == NODE and moment.done == 4 and not cancelled:
            cancelled.append(moment)
            server.interrupt()
            time.sleep(0.1)

    entry = run_live(server, prompt, cancel)
    lines = reported(entry, *named(prompt, NODE))
    content = written(server, "cut")
    made = len({(i["seed"], i["strength"]) for i in content["images"]})
    assert content["cancelled"] is True and 4 <= made < 18
    assert f"Cancelled after {made} of 18 images" in lines[0]
    server.wait(server.post(prompt))
    again = written(server, "cut_2")
    assert again["cancelled"] is False and len(again["images"]) == 18
