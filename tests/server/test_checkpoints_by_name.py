"""The training examples with Load Checkpoint for the pocket model, on small checkpoints with random weights."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from concept_sliders.cli.live import run_live
from concept_sliders.devtools import host
from concept_sliders.devtools.workflow import change, named
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.tests.server.test_workflows import cancel_after_a_step, loras, saved_file, shown

WRITER = Path(__file__).parents[1] / "support" / "checkpoint.py"
PICTURES = {"batch_size": 1}
BY_NAME = {  # as the examples' notes say, with few steps
    "train_a_textual_slider": {
        "Images in a Training Step": PICTURES,
        "People to Sweep Over": PICTURES,
        "Slider Concept": {"preserve": "", "eta": 4.0},
        "Train Slider": {"steps": 2, "rollout_steps": 2, "learning_rate": 5e-4},
    },
    "train_a_visual_slider": {
        "People to Sweep Over": PICTURES,
        "Train Visual Slider": {"steps": 2, "learning_rate": 5e-4},
    },
    "train_a_repair_slider": {
        "Load Recipe": {"slider": "recipes/fix_hands"},
        "Images in a Training Step": PICTURES,
        "People to Sweep Over": PICTURES,
    },
}


@pytest.fixture(scope="session")
def checkpoint(server):
    """`checkpoint(family)`: the name of a small checkpoint, written once."""

    def name(family):
        file = server.base / "models" / "checkpoints" / f"{family.replace(' ', '').lower()}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, WRITER, host.ready().comfy, family, file], check=True)
        return file.name

    return name


@pytest.mark.parametrize(
    ("name", "family", "known_as"),
    [
        *((name, "SD 1", "SD15") for name in BY_NAME),
        *(pytest.param(name, "SDXL", "SDXL", marks=pytest.mark.release) for name in BY_NAME),
    ],
)
def test_an_example_trains_a_checkpoint_by_name(server, example, checkpoint, name, family, known_as):
    saved = f"sliders/{family} {name}"
    prompt = example(name, {**BY_NAME[name], "Save Slider": {"name": saved}})
    (loader,) = named(prompt, "Load Pocket Model")
    prompt[loader].update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": checkpoint(family)})
    change(prompt, "Sweep Sliders", values="-1, 1")
    entry = run_live(
        server, prompt, partial(cancel_after_a_step, server) if "repair" in name else lambda moment: None
    )
    slider = load_slider(loras(server) / saved_file(prompt, entry))
    assert slider.info.family == known_as and slider.info.recipe["steps_done"] >= 1
    assert all(name.startswith("lora_unet_") for name in slider.layers)
    assert any(layer.up.any() for layer in slider.layers.values())
    assert shown(server, prompt, entry, "Slider Strip").size
