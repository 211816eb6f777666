"""A training that is cancelled on a running server, and the same graph queued again."""

import asyncio
import contextlib
import struct
import threading
import time

import aiohttp
import pytest
from concept_sliders.devtools.workflow import add
from concept_sliders.sliders.files import load_slider

TEXT = 3  # the host's kind of message for text on a node
STEPS = 60


@contextlib.contextmanager
def listening(server, client_id):
    """[(node, text)]: what the server tells this client to show on nodes."""
    told, ready, done = [], threading.Event(), threading.Event()

    async def listen():
        url = f"{server.url}/ws?clientId={client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            ready.set()
            while not done.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    message = await socket.receive(timeout=0.2)
                    if message.type is aiohttp.WSMsgType.BINARY:
                        kind, length = struct.unpack(">II", message.data[:8])
                        if kind == TEXT:
                            told.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    assert ready.wait(30)
    try:
        yield told
    finally:
        done.set()
        thread.join(30)


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
        hold="",
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
        from_part=0.0,
        to_part=1.0,
        checkpoint_every=1,
    )
    add(prompt, "ConceptSlidersSaveSlider", sliders=[train, 0], name="stopped", precision="float32")
    return prompt, train


def steps_done(server, entry):
    (file,) = [text.removeprefix("Saved ") for out in entry["outputs"].values() for text in out.get("text", ()) if
               text.startswith("Saved ")]
    return load_slider(server.base / "models" / "loras" / file).info.recipe["steps_done"]


def test_a_cancelled_training_queued_again_goes_on_and_a_finished_one_is_kept(server, graph):
    prompt, train = graph
    folder = server.base / "output" / "slider_checkpoints"
    with listening(server, "told") as told:
        first = server.post(prompt, "told")
        end = time.monotonic() + 120
        while not list(folder.glob("stopped *.pt")):
            assert time.monotonic() < end
            time.sleep(0.02)
        server.interrupt()
        stopped = server.wait(first)
    part = steps_done(server, stopped)
    assert 1 <= part < STEPS
    assert told and {node for node, _ in told} == {train}
    assert told[0][1].startswith(f"step 1 of {STEPS}, loss ")

    with listening(server, "told") as told:
        whole = server.wait(server.post(prompt, "told"))
    assert steps_done(server, whole) == STEPS
    assert told[0][1].startswith(f"step {part + 1} of {STEPS}")  # it went on, and did not begin anew

    again = server.wait(server.post(prompt, "told"))
    assert set(dict(again["status"]["messages"])["execution_cached"]["nodes"]) == set(prompt)
