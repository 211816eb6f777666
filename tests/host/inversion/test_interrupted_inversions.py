"""Inversions that end early; the model is as it was after each."""

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.gradient_checkpointing import checkpointed
from concept_sliders.inversion import inversion_run, predictions
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.inversion.run_state import was_cancelled
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.inverting import STEPS, by_sampler_custom, inverted, quick_settings

pytestmark = pytest.mark.usefixtures("untouched")


def downwards(told):
    return told.text.startswith("step")


def test_progress_is_told_step_by_step_with_the_image_it_heads_for(pocket, images):
    told = []
    made = inverted(pocket[0], images, told.append)
    assert [t.done for t in told] == [2 * n for n in range(1, 2 * STEPS + 1)] and told[-1].of == told[-1].done
    assert all(t.preview is None for t in told[:STEPS])
    assert all(t.preview.shape == images.latents.shape for t in told[STEPS:])
    sizes = images.latents.norm()
    assert (told[-1].preview - images.latents).norm() / sizes < 2 * made.error.max()
    assert f"step {STEPS} of {STEPS}, loss" in told[-1].text


@pytest.mark.parametrize("after", [1, 3])
def test_cancelling_keeps_the_steps_done_and_says_so(pocket, images, inversion, after):
    def cancel(told):
        if told.text.startswith(f"step {after} "):
            comfy.model_management.interrupt_current_processing()  # as the button does

    made = inverted(pocket[0], images, cancel)
    assert not comfy.model_management.processing_interrupted()
    assert made.done == after and len(made.losses) == after
    assert f"Cancelled after {after} of {STEPS} steps" in made.report() and "not known" in made.report()
    torch.testing.assert_close(made.embeddings[:after], inversion.embeddings[:after])
    assert all(torch.equal(later, made.embeddings[after - 1]) for later in made.embeddings[after:])
    again = by_sampler_custom(pocket[0], made, images.positive)
    assert torch.isfinite(again).all()


def stopping(moment, told=None):
    """Cancels at the first part of a run that is told so."""

    def tell(so_far):
        if told is not None:
            told.append(so_far.text)
        if so_far.text.startswith(moment):
            comfy.model_management.interrupt_current_processing()

    return tell


def goes_on(pocket, images, tell, place, **changes):
    with torch.inference_mode():
        latents, positive, negative = images.latents, images.positive, images.negative
        return invert(pocket[0], latents, positive, negative, quick_settings(**changes), tell, place)


def assert_same(one, other):
    for name in ("noise", "embeddings", "error", "sigmas"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.losses == other.losses and one.done == other.done == STEPS
    assert one.facts() == other.facts()


def test_a_cancelled_inversion_goes_on_where_it_stood_to_the_bit(pocket, images, inversion):
    model, told = pocket[0], []
    for step in (1, 3):
        made = goes_on(pocket, images, stopping(f"step {step} "), "a node")
        assert made.done == step and was_cancelled(model, "a node")
    assert not was_cancelled(model.clone(), "a node") and not was_cancelled(model, "another node")
    assert_same(goes_on(pocket, images, lambda t: told.append(t), "a node"), inversion)
    assert [t.text.split(" of ")[0] for t in told] == [f"step {STEPS}"]
    assert told[-1].done == told[-1].of
    assert not was_cancelled(model, "a node") and not model.attachments


def test_a_step_that_is_cancelled_once_it_is_optimised_is_not_optimised_again(pocket, images, inversion, monkeypatch):
    own_guided, asked = predictions.Predictions.guided, []

    def guided(self, *given):
        asked.append(given)
        if len(asked) == 2:
            raise InterruptProcessingException
        return own_guided(self, *given)

    monkeypatch.setattr(predictions.Predictions, "guided", guided)
    assert goes_on(pocket, images, lambda told: None, "a node").done == 2
    assert_same(goes_on(pocket, images, lambda told: None, "a node"), inversion)


def test_so_do_images_that_go_one_by_one(pocket, images, monkeypatch):
    failing(monkeypatch, at_once=1, times=0)
    whole, told = inverted(pocket[0], images), []
    second = []

    def in_the_second(so_far):
        second.append(so_far.text.startswith("step 2 "))
        if sum(second) == 2:
            comfy.model_management.interrupt_current_processing()

    assert goes_on(pocket, images, in_the_second, "a node").done == 2
    assert_same(goes_on(pocket, images, lambda t: told.append(t.text[:6]), "a node"), whole)
    assert told == ["step 3", "step 4"]


def test_another_inversion_begins_anew(pocket, images):
    few = {"steps": 2, "inner_steps": 1, "refinement": 0}
    for model, changes in ((pocket[0].clone(), {}), (pocket[0], {"cfg": 4.0})):
        told = []
        goes_on(pocket, images, stopping("step 1 "), "a node", **few)
        tell = stopping("never", told)
        made = goes_on((model, *pocket[1:]), images, tell, "a node", **{**few, **changes})
        assert made.done == 2 and told[0].startswith("inversion, step 1")


@pytest.mark.parametrize("method", ["null-text", "negative prompt"])
def test_one_that_was_cancelled_on_the_way_up_goes_on_too(pocket, images, method):
    whole, told = inverted(pocket[0], images, method=method), []
    with pytest.raises(InterruptProcessingException):
        goes_on(pocket, images, stopping("inversion, step 3"), "a node", method=method)
    assert was_cancelled(pocket[0], "a node")
    assert_same(goes_on(pocket, images, stopping("never", told), "a node", method=method), whole)
    assert told[0] == f"inversion, step {STEPS} of {STEPS}"


def test_a_cancelled_run_that_fits_nothing_says_so_too(pocket, images):
    made = goes_on(pocket, images, stopping("step 2 "), "a node", method="negative prompt")
    assert made.done == 2 and f"Cancelled after 2 of {STEPS} steps" in made.report()
    again = goes_on(pocket, images, lambda told: None, "a node", method="negative prompt")
    assert "Cancelled" not in again.report()


def test_a_preview_may_send_the_model_away(images):
    """As a VAE does that needs its room; patches of ComfyUI are on the weights again afterwards."""
    patched, sent = load_pocket()[0], []
    name = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = patched.model.get_parameter(name)
    patched.add_patches({name: ("diff", (0.2 * torch.randn_like(weight),))})

    def tell(told):
        if told.preview is not None:
            sent.append(told.preview.is_inference())
            comfy.model_management.free_memory(1e30, torch.device("cpu"))

    expected, made = inverted(patched, images), inverted(patched, images, tell)
    assert sent
    assert_same(made, expected)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, KeyError])
def test_a_preview_that_fails_is_the_last(pocket, images, inversion, error):
    tried = []

    def tell(told):
        if told.preview is not None:
            tried.append(told)
            raise error("no room for the VAE")

    made = inverted(pocket[0], images, tell)
    assert_same(made, inversion)
    assert len(tried) == 1
    (warning,) = made.warnings()
    assert warning.startswith(f"going on without previews, as one failed: {error.__name__}: ")


@pytest.mark.parametrize("moment", ["inversion, step 2", f"inversion, step {STEPS}"])
def test_cancelling_before_anything_is_fitted_gives_nothing(pocket, images, moment):
    def cancel(told):
        if told.text.startswith(moment):
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(InterruptProcessingException):
        inverted(pocket[0], images, cancel)
    assert not comfy.model_management.processing_interrupted()


class Unexpected(Exception):
    """Of no kind that a preview is known to fail with."""


@pytest.mark.parametrize("moment", ["inversion, step 1", "step 2"])
def test_an_error_at_any_stage_leaves_no_trace(pocket, images, moment):
    def fail(told):
        if told.text.startswith(moment):
            raise Unexpected

    with pytest.raises(Unexpected):
        inverted(pocket[0], images, fail)


FULL = torch.cuda.OutOfMemoryError("no room")
FULL_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")  # torch's words


def failing(monkeypatch, at_once, times, error=FULL):
    """The fitting has room for so many images at once only; for `times` times, it has not even that."""
    own_optimise, found = inversion_run.optimise_embedding, []

    def optimise(predict, embedding, step, *settings):
        found.append(len(step.x))
        if len(step.x) > at_once or len(found) <= times:
            raise error
        return own_optimise(predict, embedding, step, *settings)

    monkeypatch.setattr(inversion_run, "optimise_embedding", optimise)
    return found


@pytest.mark.parametrize("error", [FULL, FULL_CPU])
def test_where_memory_runs_out_images_go_one_by_one(pocket, images, inversion, monkeypatch, error):
    found = failing(monkeypatch, 1, 0, error)
    made = inverted(pocket[0], images)
    assert found == [2] + [1] * 2 * STEPS
    assert made.warnings() == ["no memory for 2 images at once; going on with 1"]
    torch.testing.assert_close(made.noise, inversion.noise, rtol=1e-4, atol=1e-4)
    assert made.error.tolist() == pytest.approx(inversion.error.tolist(), rel=0.1)


def test_what_had_been_done_of_images_together_does_not_count_twice(pocket, images, monkeypatch):
    own_optimise, found, told = inversion_run.optimise_embedding, [], []

    def optimise(predict, embedding, step, *settings):
        found.append(len(step.x))
        if len(found) == 2:  # a step of both images is behind it
            raise FULL
        return own_optimise(predict, embedding, step, *settings)

    monkeypatch.setattr(inversion_run, "optimise_embedding", optimise)
    inverted(pocket[0], images, told.append)
    assert found == [2, 2] + [1] * 2 * STEPS
    assert all(t.done <= t.of for t in told) and told[-1].done == told[-1].of


def test_then_gradient_checkpointing_gives_the_same_result(pocket, images, monkeypatch):
    one = [images.latents[:1], images.positive, images.negative]
    entered = []
    monkeypatch.setattr(predictions, "checkpointed", lambda network: entered.append(network) or checkpointed(network))
    with torch.inference_mode():
        whole = invert(pocket[0], *one, quick_settings())
        failing(monkeypatch, at_once=1, times=1)
        made = invert(pocket[0], *one, quick_settings())
    assert len(entered) == STEPS and "going on with gradient checkpointing" in made.warnings()[0]
    assert float(made.error) == pytest.approx(float(whole.error), rel=0.05)


def test_where_not_even_that_has_room_it_is_comfyuis_error(pocket, images, monkeypatch):
    failing(monkeypatch, at_once=1, times=9)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        inverted(pocket[0], images)


def test_nothing_is_kept_for_backward_beyond_a_step(pocket, images, monkeypatch):
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
    inverted(pocket[0], images, inner_steps=1)
    assert most == [0] * STEPS and kept == [0]
