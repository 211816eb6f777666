"""Inversions that end early; the model is as it was after each."""

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.gradient_checkpointing import checkpointed
from concept_sliders.inversion import inversion_run, predictions
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.inversion.run_state import was_cancelled
from concept_sliders.pocket.model import load_pocket
from concept_sliders.tests.support.inverting import STEPS, by_sampler_custom, inverted, quick_settings

pytestmark = pytest.mark.usefixtures("untouched")


def downwards(told):
    return told.text.startswith("step")


def test_progress_is_told_step_by_step_with_the_picture_it_heads_for(pocket, pictures):
    told = []
    made = inverted(pocket[0], pictures, told.append)
    assert [t.done for t in told] == [2 * n for n in range(1, 2 * STEPS + 1)] and told[-1].of == told[-1].done
    assert all(t.preview is None for t in told[:STEPS])
    assert all(t.preview.shape == pictures.latents.shape for t in told[STEPS:])
    sizes = pictures.latents.norm()
    assert (told[-1].preview - pictures.latents).norm() / sizes < 2 * made.error.max()
    assert f"step {STEPS} of {STEPS}, loss" in told[-1].text


@pytest.mark.parametrize("after", [1, 3])
def test_cancelling_keeps_the_steps_done_and_says_so(pocket, pictures, inversion, after):
    def cancel(told):
        if told.text.startswith(f"step {after} "):
            comfy.model_management.interrupt_current_processing()  # as the button does

    made = inverted(pocket[0], pictures, cancel)
    assert not comfy.model_management.processing_interrupted()
    assert made.done == after and len(made.losses) == after
    assert f"Cancelled after {after} of {STEPS} steps" in made.report() and "not known" in made.report()
    torch.testing.assert_close(made.embeddings[:after], inversion.embeddings[:after])
    assert all(torch.equal(later, made.embeddings[after - 1]) for later in made.embeddings[after:])
    again = by_sampler_custom(pocket[0], made, pictures.positive)
    assert torch.isfinite(again).all()


def stopping(moment, told=None):
    """Cancels at the first part of a run that is told so."""

    def tell(so_far):
        if told is not None:
            told.append(so_far.text)
        if so_far.text.startswith(moment):
            comfy.model_management.interrupt_current_processing()

    return tell


def goes_on(pocket, pictures, tell, place, **changes):
    with torch.inference_mode():
        latents, positive, negative = pictures.latents, pictures.positive, pictures.negative
        return invert(pocket[0], latents, positive, negative, quick_settings(**changes), tell, place)


def assert_same(one, other):
    for name in ("noise", "embeddings", "error", "sigmas"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.losses == other.losses and one.done == other.done == STEPS
    assert one.report() == other.report()


def test_a_cancelled_inversion_goes_on_where_it_stood_to_the_bit(pocket, pictures, inversion):
    model, told = pocket[0], []
    for step in (1, 3):
        made = goes_on(pocket, pictures, stopping(f"step {step} "), "a node")
        assert made.done == step and was_cancelled(model, "a node")
    assert not was_cancelled(model.clone(), "a node") and not was_cancelled(model, "another node")
    assert_same(goes_on(pocket, pictures, lambda t: told.append(t), "a node"), inversion)
    assert [t.text.split(" of ")[0] for t in told] == [f"step {STEPS}"]
    assert told[-1].done == told[-1].of
    assert not was_cancelled(model, "a node") and not model.attachments


def test_so_do_pictures_that_go_one_by_one(pocket, pictures, monkeypatch):
    failing(monkeypatch, rows=1, times=0)
    whole, told = inverted(pocket[0], pictures), []
    second = []

    def in_the_second(so_far):
        second.append(so_far.text.startswith("step 2 "))
        if sum(second) == 2:
            comfy.model_management.interrupt_current_processing()

    assert goes_on(pocket, pictures, in_the_second, "a node").done == 2
    assert_same(goes_on(pocket, pictures, lambda t: told.append(t.text[:6]), "a node"), whole)
    assert told == ["step 3", "step 4"]


def test_another_inversion_begins_anew(pocket, pictures):
    few = {"steps": 2, "inner_steps": 1, "refinement": 0}
    for model, changes in ((pocket[0].clone(), {}), (pocket[0], {"cfg": 4.0})):
        told = []
        goes_on(pocket, pictures, stopping("step 1 "), "a node", **few)
        tell = stopping("never", told)
        made = goes_on((model, *pocket[1:]), pictures, tell, "a node", **{**few, **changes})
        assert made.done == 2 and told[0].startswith("inversion, step 1")


@pytest.mark.parametrize("method", ["null-text", "negative prompt"])
def test_one_that_was_cancelled_on_the_way_up_goes_on_too(pocket, pictures, method):
    whole, told = inverted(pocket[0], pictures, method=method), []
    with pytest.raises(InterruptProcessingException):
        goes_on(pocket, pictures, stopping("inversion, step 3"), "a node", method=method)
    assert was_cancelled(pocket[0], "a node")
    assert_same(goes_on(pocket, pictures, stopping("never", told), "a node", method=method), whole)
    assert told[0] == f"inversion, step {STEPS} of {STEPS}"


def test_a_cancelled_run_that_fits_nothing_says_so_too(pocket, pictures):
    made = goes_on(pocket, pictures, stopping("step 2 "), "a node", method="negative prompt")
    assert made.done == 2 and f"Cancelled after 2 of {STEPS} steps" in made.report()
    again = goes_on(pocket, pictures, lambda told: None, "a node", method="negative prompt")
    assert "Cancelled" not in again.report()


def test_a_preview_may_send_the_model_away(pictures):
    """As a VAE does that needs its room; patches of the host are on the weights again afterwards."""
    patched, sent = load_pocket()[0], []
    name = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = patched.model.get_parameter(name)
    patched.add_patches({name: ("diff", (0.2 * torch.randn_like(weight),))})

    def tell(told):
        if told.preview is not None:
            sent.append(told.preview.is_inference())
            comfy.model_management.free_memory(1e30, torch.device("cpu"))

    expected, made = inverted(patched, pictures), inverted(patched, pictures, tell)
    assert sent
    assert_same(made, expected)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, KeyError])
def test_a_preview_that_fails_is_the_last(pocket, pictures, inversion, caplog, error):
    tried = []

    def tell(told):
        if told.preview is not None:
            tried.append(told)
            raise error("no room for the VAE")

    assert_same(inverted(pocket[0], pictures, tell), inversion)
    assert len(tried) == 1 and f"without previews, as one failed: {error.__name__}: " in caplog.text


@pytest.mark.parametrize("moment", ["inversion, step 2", f"inversion, step {STEPS}"])
def test_cancelling_before_anything_is_fitted_gives_nothing(pocket, pictures, moment):
    def cancel(told):
        if told.text.startswith(moment):
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(InterruptProcessingException):
        inverted(pocket[0], pictures, cancel)
    assert not comfy.model_management.processing_interrupted()


class Unexpected(Exception):
    """Of no kind that a preview is known to fail with."""


@pytest.mark.parametrize("moment", ["inversion, step 1", "step 2"])
def test_an_error_at_any_stage_leaves_no_trace(pocket, pictures, moment):
    def fail(told):
        if told.text.startswith(moment):
            raise Unexpected

    with pytest.raises(Unexpected):
        inverted(pocket[0], pictures, fail)


FULL = torch.cuda.OutOfMemoryError("no room")
FULL_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")  # torch's words


def failing(monkeypatch, rows, times, error=FULL):
    """The fitting has room for so many rows at once only; for `times` times, it has not even that."""
    own_optimise, found = inversion_run.optimise_embedding, []

    def optimise(predict, embedding, step, *settings):
        found.append(len(step.x))
        if len(step.x) > rows or len(found) <= times:
            raise error
        return own_optimise(predict, embedding, step, *settings)

    monkeypatch.setattr(inversion_run, "optimise_embedding", optimise)
    return found


@pytest.mark.parametrize("error", [FULL, FULL_CPU])
def test_where_memory_runs_out_pictures_go_one_by_one(pocket, pictures, inversion, monkeypatch, caplog, error):
    found = failing(monkeypatch, 1, 0, error)
    made = inverted(pocket[0], pictures)
    assert found == [2] + [1] * 2 * STEPS
    assert "no memory for 2 at once; going on with 1" in caplog.text
    torch.testing.assert_close(made.noise, inversion.noise, rtol=1e-4, atol=1e-4)
    assert made.error.tolist() == pytest.approx(inversion.error.tolist(), rel=0.1)


def test_then_blocks_are_run_twice_with_the_same_result(pocket, pictures, monkeypatch, caplog):
    one = [pictures.latents[:1], pictures.positive, pictures.negative]
    entered = []
    monkeypatch.setattr(predictions, "checkpointed", lambda network: entered.append(network) or checkpointed(network))
    with torch.inference_mode():
        whole = invert(pocket[0], *one, quick_settings())
        failing(monkeypatch, rows=1, times=1)
        made = invert(pocket[0], *one, quick_settings())
    assert len(entered) == STEPS and "going on with gradient checkpointing" in caplog.text
    assert float(made.error) == pytest.approx(float(whole.error), rel=0.05)


def test_where_not_even_that_has_room_it_is_the_hosts_error(pocket, pictures, monkeypatch):
    failing(monkeypatch, rows=1, times=9)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        inverted(pocket[0], pictures)


def test_nothing_is_kept_for_backward_beyond_a_step(pocket, pictures, monkeypatch):
    """The graphs of two steps are never there at once: what a step saves is gone when the next one begins."""
    kept, most, own_optimise = [0], [], inversion_run.optimise_embedding

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept[0] += 1

        def __del__(self):
            kept[0] -= 1

    def optimise(*given):
        most.append(kept[0])
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            return own_optimise(*given)

    monkeypatch.setattr(inversion_run, "optimise_embedding", optimise)
    inverted(pocket[0], pictures, inner_steps=1)
    assert most == [0] * STEPS and kept == [0]
