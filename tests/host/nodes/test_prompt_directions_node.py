"""Discover Prompt Directions and Shift Prompt as ComfyUI runs them, on the pocket model."""

import pytest
import torch
from comfy.model_management import interrupt_current_processing
from concept_sliders.comfy_host.seeded_sampling import sample_seeds
from concept_sliders.discovery import trajectories
from concept_sliders.nodes import prompt_directions
from concept_sliders.nodes.prompt_directions import DiscoverPromptDirections, ShiftPrompt
from concept_sliders.nodes.report import KEY
from concept_sliders.pocket.models.loading import load_pocket

import nodes

PROMPT = "portrait of a person"
LATENT = {"samples": torch.zeros(1, 8, 16, 16)}
SETTINGS = {"prompt": PROMPT, "directions": 2, "samples": 5, "gradients": 8, "sampling_steps": 3}


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def output(pocket):
    model, clip, vae = pocket
    with torch.inference_mode():
        return DiscoverPromptDirections.execute(model=model, clip=clip, vae=vae, latent=LATENT, **SETTINGS)


def encoded(clip, prompt):
    return nodes.CLIPTextEncode().encode(clip, prompt)[0]


def sample(model, clip, positive, latent):
    return nodes.common_ksampler(
        model, 5, 3, 3.0, "euler", "simple", positive, encoded(clip, ""), latent
    )[0]["samples"]  # fmt: skip


def test_directions_a_sheet_and_a_report(output):
    found, sheet, report = output.args
    assert len(found) == 2 and found.shifts.shape[0] == 2
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.std() > 0.1
    assert "2 directions" in report and [line["text"] for line in output.ui[KEY]]


def test_a_sweep_shifts_each_latent_by_every_strength_and_0_is_the_prompt_itself(pocket, output):
    model, clip, _ = pocket
    with torch.inference_mode():
        positive = encoded(clip, PROMPT)
        two = {"samples": LATENT["samples"].repeat(2, 1, 1, 1)}
        shifted, latent = ShiftPrompt.execute(positive, output.args[0], two, "-1, 0, 1", 2).args
        swept, plain = sample(model, clip, shifted, latent), sample(model, clip, positive, two)
    assert latent["batch_index"] == [0, 0, 0, 1, 1, 1] and len(swept) == 6
    torch.testing.assert_close(swept[[1, 4]], plain, rtol=1e-3, atol=1e-3)
    less, more = swept[[0, 3]] - plain, swept[[2, 5]] - plain
    assert less.abs().mean() > 1e-3 and more.abs().mean() > 1e-3 and not torch.allclose(less, more)


def test_a_single_strength_shifts_the_prompt_and_shifts_add_up(pocket, output):
    with torch.inference_mode():
        positive, found = encoded(pocket[1], PROMPT), output.args[0]
        once, latent = ShiftPrompt.execute(positive, found, LATENT, "2", 1).args
        both, _ = ShiftPrompt.execute(once, found, LATENT, "-1", 2).args
    assert latent is LATENT
    torch.testing.assert_close(both[0][0][0], positive[0][0][0] + 2 * found.shifts[0] - found.shifts[1])


def test_a_cancel_in_the_sheet_keeps_the_directions(pocket, monkeypatch):
    model, clip, vae = pocket

    def cancelled(*given):
        interrupt_current_processing()
        return sample_seeds(*given)

    monkeypatch.setattr(prompt_directions, "sample_seeds", cancelled)
    with torch.inference_mode():
        output = DiscoverPromptDirections.execute(model=model, clip=clip, vae=vae, latent=LATENT, **SETTINGS)
    found, sheet, report = output.args
    assert len(found) == 2 and sheet.shape[-1] == 3 and "the sheet is not whole" in report


def test_another_encoding_and_a_direction_that_is_not_there_are_refused(output):
    with pytest.raises(ValueError, match="no direction 3: there are 2"):
        ShiftPrompt.execute([[torch.zeros(1, 40, 128), {}]], output.args[0], LATENT, "1", 3)
    with pytest.raises(ValueError, match=r"40 tokens of width 128.*got 1 entries of 77 tokens of width 768"):
        ShiftPrompt.execute([[torch.zeros(1, 77, 768), {}]], output.args[0], LATENT, "1", 1)


@pytest.mark.parametrize(("missing", "message"), [("clip", "has no CLIP"), ("vae", "has no VAE")])
def test_a_checkpoint_without_parts_is_said(pocket, missing, message):
    given = {**dict(zip(("model", "clip", "vae"), pocket)), missing: None}
    with pytest.raises(ValueError, match=f"Discover Prompt Directions: the checkpoint {message}"):
        DiscoverPromptDirections.execute(**given, latent=LATENT, **SETTINGS)


def test_samples_that_tell_nothing_are_refused(pocket, monkeypatch):
    noise_of = trajectories.noise_of
    monkeypatch.setattr(trajectories, "noise_of", lambda shape, seed, number: noise_of(shape, seed, 0))
    given = dict(zip(("model", "clip", "vae"), pocket))
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="all 5 samples are the same image: there is nothing"),
    ):
        DiscoverPromptDirections.execute(**given, latent=LATENT, **SETTINGS)
    with pytest.raises(ValueError, match="gradients must be more than the directions, 8, got 8"):
        DiscoverPromptDirections.execute(**given, latent=LATENT, **{**SETTINGS, "directions": 8})
