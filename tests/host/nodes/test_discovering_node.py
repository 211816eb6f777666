"""Discover Sliders as ComfyUI runs it, on the pocket model with the encoder that belongs with it."""

from copy import copy

import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.discovery import trajectories
from concept_sliders.discovery.learning import NO_ROOM
from concept_sliders.evaluation.sweep_sampling import sample_sweep
from concept_sliders.nodes import discovering
from concept_sliders.nodes.discovering import DiscoverSliders
from concept_sliders.nodes.image_strip import GAP
from concept_sliders.nodes.report import KEY
from concept_sliders.nodes.run_progress import IMAGE_WIDTH
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.tiny_vision import blinded, flattened

SETTINGS = {
    "prompts": "portrait of a person", "directions": 2, "samples": 10, "sampling_steps": 3, "guidance": 3.0,
    "name": "found", "steps": 4, "head_steps": 20, "words": "old, young, night, noon, unheard, unseen",
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    with torch.inference_mode():
        model, clip, vae, vision = load_pocket()
        return {"model": model, "clip": clip, "vae": vae, "clip_vision": vision}


def run(models, **settings):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 8, 16, 16)}
        return DiscoverSliders.execute(**models, latent=latent, **{**SETTINGS, **settings})


def test_a_stack_with_names_a_sheet_and_a_report(models):
    output = run(models)
    stack, sheet, report = output.args
    assert len(stack) == 2
    for position, each in enumerate(stack):
        info = each.slider.info
        assert {info.less, info.more} <= {"old", "young", "night", "noon"}  # words that the encoder knows
        assert info.less != info.more and each.slider.name == f"found {position + 1} {info.more}"
        assert info.recipe["kind"] == "direction" and info.recipe["prompts"] == ("portrait of a person",)
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.min() >= 0 and sheet.max() <= 1 and sheet.std() > 0.1
    assert "2 directions" in report and "cosine with its component" in report
    assert [line["text"] for line in output.ui[KEY]] and "R^2" in report


def test_encoders_that_do_not_belong_together_leave_numbers_or_refuse_to_leave_texts_out(models, other_vision):
    output = run({**models, "clip_vision": other_vision}, steps=1)
    assert [each.slider.name for each in output.args[0]] == ["found 1", "found 2"]
    assert "Directions have numbers for names" in output.args[2]
    with pytest.raises(ValueError, match="leave_out takes encoders that belong together"):
        run({**models, "clip_vision": other_vision}, leave_out="ink sketch")


def test_another_encoder_names_directions_that_theirs_cannot(models, other_vision):
    """The other encoder has the same weights, so that both find the same; the images get the names then."""
    output = run({**models, "clip_vision": other_vision}, names_by=models["clip_vision"])
    stack, sheet, report = output.args
    for position, each in enumerate(stack):
        info = each.slider.info
        assert {info.less, info.more} <= {"old", "young", "night", "noon"} and info.less != info.more
        assert each.slider.name == f"found {position + 1} {info.more}"
    assert "numbers for names" not in report and sheet.std() > 0.1
    assert "2 directions" in report and stack[0].slider.name in report


@pytest.fixture
def other_vision(models):
    """The same weights, of another class."""
    other = copy(models["clip_vision"])
    other.config = {**other.config, "patch_size": 1 + other.config["patch_size"]}
    return other


def test_a_cancel_before_training_is_comfyuis(models):
    interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        run(models, seed=5)


@pytest.fixture
def strips():
    """The previews that ComfyUI's progress bar is given."""
    shown = []

    def hook(value, total, preview, node_id=None):
        if preview is not None:
            shown.append(preview[1])

    comfy.utils.set_progress_bar_global_hook(hook)
    yield shown
    comfy.utils.set_progress_bar_global_hook(None)


def test_the_directions_so_far_are_shown_while_they_are_trained(models, strips):
    run(models, steps=50)
    (strip,) = strips
    columns, rows = (strip.width - GAP) // (IMAGE_WIDTH + GAP), strip.height // (IMAGE_WIDTH + GAP)
    assert (columns, rows) == (3, 2)


def test_a_cancel_before_the_sheets_first_image_keeps_the_directions(models, monkeypatch):
    def cancelled(*given):
        interrupt_current_processing()
        return sample_sweep(*given)

    monkeypatch.setattr(discovering, "sample_sweep", cancelled)
    stack, sheet, report = run(models, steps=2).args
    assert len(stack) == 2 and sheet.shape[-1] == 3 and "Cancelled before there was an image" in report


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("clip", r"has no CLIP. Connect the model's text encoder to clip"),
        ("vae", r"has no VAE. Connect the model's VAE to vae"),
        ("clip_vision", r"has no vision encoder. Connect one to clip_vision"),
    ],
)
def test_a_checkpoint_without_parts_is_said(models, missing, message):
    with pytest.raises(ValueError, match=f"Discover Sliders: the checkpoint {message}"):
        run({**models, missing: None})


def test_samples_that_tell_nothing_are_refused_and_why(models, monkeypatch):
    with pytest.raises(ValueError, match="samples must be more than the directions, 10, got 10"):
        run(models, directions=10)
    blind = {**models, "clip_vision": blinded(models["clip_vision"])}
    with pytest.raises(ValueError, match="clip_vision gives all 10 samples the same embedding, though their images"):
        run(blind)
    noise_of = trajectories.noise_of
    monkeypatch.setattr(trajectories, "noise_of", lambda shape, seed, number: noise_of(shape, seed, 0))
    with pytest.raises(ValueError, match="all 10 samples are the same image: there is nothing to tell apart"):
        run(models, seed=9)


def test_fewer_directions_than_were_asked_for_are_said(models):
    flat = {**models, "clip_vision": flattened(models["clip_vision"], 2)}
    stack, _, report = run(flat, directions=4, words="", steps=1).args
    assert len(stack) <= 2 and "4 directions were asked for, and the samples vary along 2 only." in report


def test_where_the_decoders_gradients_have_no_room_the_report_says_what_took_its_place(models, monkeypatch):
    decode = Decoder.__call__

    def without_room_for_gradients(self, latents):
        if latents.requires_grad:
            raise torch.OutOfMemoryError("no room for the graph")
        return decode(self, latents)

    monkeypatch.setattr(Decoder, "__call__", without_room_for_gradients)
    output = run(models, embedding="decoder")
    assert NO_ROOM in [line["text"] for line in output.ui[KEY]] and "head: R^2" in output.args[2]
