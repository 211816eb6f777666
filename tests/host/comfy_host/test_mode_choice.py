"""How sliders act is decided for one run: its length, what it refuses, and how it ends."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import condition, difference, random_slider, sample, tiny_model

FAMILY = "SD15"


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def merged_of(model):
    return state_of(model.model).merged


@pytest.mark.parametrize(("ranks", "steps", "merges"), [(2, 9, False), (2, 10, True), (32, 3, False), (32, 4, True)])
def test_few_sliders_are_merged_for_longer_runs_only(model, ranks, steps, merges):
    stack = Stack.of(random_slider(model, rank=ranks), 0.3)
    sample(apply_sliders(model, stack), FAMILY, steps=steps)
    assert (merged_of(model).uses > 0) == merges


def test_a_run_that_was_cut_off_between_evaluations_leaves_nothing_merged(model):
    """The next one is the same to the bit as on a model without history, although one slider was only turned."""
    stack = Stack.of(random_slider(model, 1), 0.7) + Stack.of(random_slider(model, 2), -0.4)
    turned = Stack.of(random_slider(model, 1), 0.7) + Stack.of(random_slider(model, 2), -0.3)

    class Cancelled(Exception):
        pass

    def cancel(step, *_):
        raise Cancelled

    sample(apply_sliders(model, stack, "merged"), FAMILY)
    with pytest.raises(Cancelled):
        sample(apply_sliders(model, turned, "merged"), FAMILY, callback=cancel)
    again = sample(apply_sliders(model, turned, "merged"), FAMILY)
    assert torch.equal(again, sample(apply_sliders(tiny_model(FAMILY), turned, "merged"), FAMILY))


def test_a_run_over_the_same_tensor_of_sigmas_is_another_run(model):
    """Custom samplers are given the same one again and again: that merging was refused once is no reason to."""
    sigmas = torch.linspace(10.0, 0.0, 6)
    acted = apply_sliders(model, Stack.of(random_slider(model), 0.7), "merged")
    run = state_of(model.model).run_of(sigmas)
    run.merging_refused = True
    custom(acted, sigmas)  # still this run, as far as anyone can tell
    assert merged_of(model).uses == 0
    custom(acted, sigmas)
    assert merged_of(model).uses == 5


def custom(model, sigmas):
    """Samples as ComfyUI does for custom samplers."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    more, less = condition(FAMILY, 2), condition(FAMILY, 3)
    euler = comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, noise, 3.0, euler, sigmas, more, less, torch.zeros_like(noise))


@pytest.mark.parametrize("refuse", ["paged", "hooks", "quantised"])
def test_asked_for_merged_and_not_merged_is_said_once(model, monkeypatch, caplog, refuse):
    reasons = {"paged": "pages", "hooks": "hooks", "quantised": "quantised"}
    told = []
    acted = apply_sliders(model, Stack.of(random_slider(model), 0.7), "merged", told.append)
    monkeypatch.setattr(mode_choice, "OBSTACLES", (mode_choice.Obstacle(lambda at: True, reasons[refuse]),))
    sample(acted, FAMILY)
    assert told == [f"Sliders act unmerged although they are to be merged: {reasons[refuse]}."]
    assert caplog.text.count(told[0]) == 1


def on_a_gpu():
    raise torch.cuda.OutOfMemoryError("no room")


@pytest.mark.parametrize("no_room", [on_a_gpu, lambda: torch.empty(2**46)], ids=["GPU", "CPU"])
def test_out_of_memory_while_building(model, monkeypatch, caplog, no_room):
    stack = Stack.of(random_slider(model))
    expected = sample(apply_sliders(model, stack, "unmerged"), FAMILY)
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: no_room())
    told = []
    acted = apply_sliders(model, stack, "merged", told.append)
    assert difference(sample(acted, FAMILY), expected) < 1e-6
    assert len(told) == caplog.text.count("no memory for merged weights") == 1  # not tried again in every step
    automatic = apply_sliders(model, stack, "auto", told.append)
    assert difference(sample(automatic, FAMILY), expected) < 1e-6 and len(told) == 1  # nobody asked for merging
    assert merged_of(model).size_bytes == 0
    monkeypatch.undo()
    assert difference(sample(acted, FAMILY), expected) < 1e-4
    assert merged_of(model).uses == 6
