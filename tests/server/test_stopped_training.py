"""A training that is cancelled on a running server, and the same graph queued again."""

import time

import pytest
from concept_sliders.devtools.server import reported, saved_as
from concept_sliders.devtools.workflow import add
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.tests.server.listening import listening

STEPS = 60


@pytest.fixture
def graph():
    """A textual training whose slider is saved; and the id of its training node."""
    prompt = {}
    pocket = add(prompt, "ConceptSlidersLoadPocketModel")
    concept = add(
        prompt,
        "ConceptSlidersSliderConcept",
        target="portrait of a person",
        more="very old person",
        less="very young person",
        preserve="",
        eta=2.0,
    )
    latent = add(prompt, "EmptyLatentImage", width=64, height=64, batch_size=1)
    train = add(
        prompt,
        "ConceptSlidersTrainSlider",
        model=[pocket, 0],
        clip=[pocket, 1],
        concept=[concept, 0],
        latent=[latent, 0],
        name="stopped",
        steps=STEPS,
        rank=2,
        learning_rate=1e-3,
        layers="self-attention",
        seed=1,
        both_signs=True,
        guidance=3.0,
        rollout_steps=3,
        start_percent=0.0,
        end_percent=1.0,
        checkpoint_every=1,
    )
    add(prompt, "ConceptSlidersSaveSlider", sliders=[train, 0], name="stopped", precision="float32")
    return prompt, train


def steps_done(server, entry):
    (file,) = saved_as(entry)
    return load_slider(server.base / "models" / "loras" / file).info.recipe["steps_done"]


def test_a_cancelled_training_queued_again_goes_on_and_a_finished_one_is_kept(server, graph):
    prompt, train = graph
    folder = server.base / "output" / "slider_checkpoints"
    with listening(server, "told") as heard:
        first = server.post(prompt, "told")
        end = time.monotonic() + 120
        while not list(folder.glob("stopped *.pt")):
            assert time.monotonic() < end
            time.sleep(0.02)
        server.interrupt()
        stopped = server.wait(first)
    part = steps_done(server, stopped)
    assert 1 <= part < STEPS
    assert {node for node, _ in heard.texts} == {train}
    assert heard.texts[0][1].startswith(f"step 1 of {STEPS}, loss ")
    end, *_ = reported(stopped, train)
    assert end.startswith(f"stopped at step {part} of {STEPS}; loss ") and "queued again, goes on from there" in end

    with listening(server, "told") as heard:
        whole = server.wait(server.post(prompt, "told"))
    assert steps_done(server, whole) == STEPS
    assert heard.texts[0][1].startswith(f"went on from step {part}: step {part + 1} of {STEPS}")
    went_on, end, *_ = reported(whole, train)
    assert went_on == f"went on from step {part}" and end.startswith(f"{STEPS} of {STEPS} steps; loss ")

    again = server.wait(server.post(prompt, "told"))
    assert set(dict(again["status"]["messages"])["execution_cached"]["nodes"]) == set(prompt)
    assert again["outputs"] == whole["outputs"]  # what is not run again reports again
