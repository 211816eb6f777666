"""Disks that take no file while a slider is trained: what was learned is handed on, and no part of a file is left."""

from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from concept_sliders.nodes import run_progress
from concept_sliders.nodes.resume_notes import fingerprint, note_stopped
from concept_sliders.nodes.training import TrainSlider
from concept_sliders.tests.support.full_disk import full_disk
from concept_sliders.tests.support.reports import warned
from concept_sliders.tests.support.short_runs import CONCEPT, LATENTS, same, train_on
from concept_sliders.training import loop, resume
from concept_sliders.training.run import RunOptions

NODE = "7"
NOT_NOTED = "That the run was stopped cannot be noted, so the same graph will not resume it: "


@pytest.fixture(scope="module")
def train(pocket):
    return train_on(pocket[0], pocket[1])


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])  # not for the first byte, within the tensors, for all but the end
def test_a_checkpoint_on_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path, part):
    file, other = tmp_path / "age.pt", tmp_path / "whole.pt"
    state = {"parameters": [torch.randn(1000) for _ in range(70)]}
    resume.write_state(other, state)
    resume.write_state(file, {"losses": [1.0]})
    with full_disk(int(part * other.stat().st_size)), pytest.raises(OSError, match="as on a full disk"):
        resume.write_state(file, state)
    assert resume.read_state(file) == {"losses": [1.0]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["age.pt", "whole.pt"]


def test_a_run_on_a_full_disk_trains_to_its_end(train, tmp_path, caplog):
    with full_disk(20_000):
        trained = train(RunOptions(checkpoints=tmp_path, checkpoint_every=3))
    assert trained.progress.steps == 8 and same(trained.slider, train().slider)
    assert caplog.text.count("Training goes on, but its checkpoint") == 3  # at 3, 6, and the end
    assert list(tmp_path.iterdir()) == []


class InAGraph(TrainSlider):
    hidden = SimpleNamespace(unique_id=NODE)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder, in which a file is where the checkpoints would be."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    (tmp_path / "slider_checkpoints").write_text("no folder")
    return tmp_path


@pytest.fixture
def train_node(pocket, monkeypatch):
    """The node as it runs in a graph, without a server; the slider that it puts out, and what it warns of."""
    monkeypatch.setattr(run_progress, "say", lambda text, node_id: None)

    def run():
        settings = {
            "steps": 8,
            "rank": 1,
            "rollout_steps": 2,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "name": "age",
        }
        with torch.inference_mode():
            out = InAGraph.execute(*pocket[:2], (CONCEPT,), {"samples": LATENTS}, checkpoint_every=2, **settings)
        return out.args[0].sliders[0].slider, warned(out)

    yield run
    comfy.utils.set_progress_bar_global_hook(None)


def test_a_cancelled_run_that_cannot_be_noted_hands_on_the_slider_so_far(train_node, output, caplog):
    comfy.utils.set_progress_bar_global_hook(
        lambda done, *_, **__: comfy.model_management.interrupt_current_processing(done == 1)
    )
    slider, warnings = train_node()
    assert slider.info.recipe["steps_done"] == 1  # of later steps ComfyUI's bar does not tell at once
    assert any(line.startswith(NOT_NOTED) for line in warnings) and NOT_NOTED in caplog.text
    assert [path.name for path in output.iterdir()] == ["slider_checkpoints"]


def test_so_does_one_that_breaks_down(train_node, output, monkeypatch, caplog):
    monkeypatch.setattr(loop, "is_broken", lambda loss, norm, earlier, scale: len(earlier) == 4)
    slider, warnings = train_node()
    assert slider.info.recipe["steps_done"] == 3
    assert any(line.startswith(NOT_NOTED) for line in warnings) and NOT_NOTED in caplog.text


def test_a_note_on_a_full_disk_leaves_none(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with full_disk(0):
        said = note_stopped("age", NODE, 3, 8)
    assert said.startswith(NOT_NOTED) and said in caplog.text
    assert fingerprint("age", NODE) == "" and list((tmp_path / "slider_checkpoints").iterdir()) == []
