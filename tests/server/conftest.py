"""One running ComfyUI with the pack in it, for all tests of this tier, and the example workflows for it."""

import importlib.util
from pathlib import Path

import pytest
from concept_sliders.devtools import host
from concept_sliders.devtools import server as servers
from concept_sliders.devtools.workflow import read_workflow, to_prompt

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
# Small enough for a test; the graph and the code are those of a real run.
SMALL_SWEEP = {
    "People to Sweep Over": {"batch_size": 2},
    "Sweep Sliders": {"values": "-1, 0, 1"},
    "KSampler": {"steps": 2},
}
FEW = {
    "train_a_textual_slider": {
        **SMALL_SWEEP,
        "Train Slider": {"steps": 3, "rollout_steps": 3},
        "Images in a Training Step": {"batch_size": 2},
    },
    "train_a_visual_slider": {**SMALL_SWEEP, "Train Visual Slider": {"steps": 3}},
    "train_a_repair_slider": SMALL_SWEEP,  # how long it trains stands in its recipe
    "use_sliders": SMALL_SWEEP,
    "edit_a_real_image": {
        "Invert Image (Null-Text)": {"steps": 3, "inner_steps": 2},
        "Sweep Sliders": {"values": "-1, 0, 1"},
    },
    "measure_a_slider": {"Measure Slider": {"seeds": "0, 1", "strengths": "-1, 1", "steps": 2}},
    "calibrate_a_slider": {"Calibrate Slider": {"seeds": "0:3", "limit": 2.0, "steps": 2, "steps_a_side": 2}},
    "report_on_sliders": {"Before": {"seeds": "0, 1", "steps": 2}, "After": {"seeds": "2, 3", "steps": 2}},
    "discover_sliders": {
        **SMALL_SWEEP,
        "People to Sweep Over": {"batch_size": 1},
        "Pick Slider": {"position": 1},
        "Discover Sliders": {"directions": 2, "samples": 8, "steps": 3, "sampling_steps": 2},
    },
    "ten_sliders": {"People": {"batch_size": 2}, "KSampler": {"steps": 2}},
}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A `devtools.server.Server` in a folder of its own: `post`, `wait`, `interrupt`, `object_info`."""
    found = host.ready()
    if found is None:
        pytest.fail("there is no ComfyUI to run: start the tests with `python3 dev.py test server`")
    manager = ("--enable-manager",) if importlib.util.find_spec("comfyui_manager") else ()
    arguments = ("--disable-api-nodes", *manager)
    with servers.running(found, tmp_path_factory.mktemp("comfyui"), arguments=arguments) as running:
        yield running


@pytest.fixture(scope="session")
def example(server):
    """`example(name, {node: {input: value}})`: an example workflow as a prompt, with few steps and pictures."""
    info = server.object_info()

    def prompt(name, overrides=None):
        changes = dict(FEW[name])
        for node, values in (overrides or {}).items():
            changes[node] = {**changes.get(node, {}), **values}
        return to_prompt(read_workflow(EXAMPLES / f"{name}.json"), info, changes)

    return prompt


@pytest.fixture(scope="session")
def trained(server, example):
    """(the training workflow as it was posted, its history entry), run once."""
    prompt = example("train_a_textual_slider")
    return prompt, server.wait(server.post(prompt))
