"""Calibrate Slider: what it finds, what comes out of it and into the file, and what it refuses."""

import comfy.model_management
import pytest
import torch
from concept_sliders.evaluation.calibrating import calibrate_stack
from concept_sliders.evaluation.calibration import EACH_END
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import EditTexts
from concept_sliders.nodes import calibrating
from concept_sliders.nodes.calibrating import CalibrateSlider
from concept_sliders.nodes.loading import LoadSlider, SaveSlider
from concept_sliders.nodes.report import KEY, WARNING
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.train_sliders import FOLDER
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import tiny_model
from concept_sliders.tests.support.tiny_vision import blinded

INPUTS = {
    "prompts": "portrait of a person",
    "negative": "",
    "seeds": "1:4",
    "limit": 2.0,
    "batch_size": 8,
    "steps": 2,
    "cfg": 1.0,
    "sampler": "euler",
    "scheduler": "normal",
    "steps_a_side": 2,
}


@pytest.fixture(autouse=True)
def as_a_node():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def slider():
    return load_slider(FOLDER / "pocket_sky.safetensors")


def run(pocket, sliders, **others):
    latent = {"samples": torch.zeros(1, 8, 16, 16)}
    output = CalibrateSlider.execute(*pocket, sliders, latent, **{**INPUTS, **others})
    return *output.args, output.ui[KEY]


def test_it_calibrates_and_save_slider_keeps_it_in_the_file(pocket, slider, untouched, loras):
    stack, sheet, report, lines = run(pocket, Stack.of(slider), more="much", less="little")
    info = stack[0].slider.info
    assert (info.less, info.more, info.useful_range) == ("little", "much", info.calibration.useful_range)
    assert max(info.calibration.high, -info.calibration.low) == 100
    assert report == "\n".join(line["text"] for line in lines) and "Save Slider keeps" in report
    assert f"{slider.name}: " in report and "plus side: " in report and "minus side: " in report
    assert sheet.shape[0] == 1 and sheet.shape[2] == 2 * 720 and sheet.shape[1] > 2 * 480 + 3 * 128

    file = SaveSlider.execute(stack, "measured", "float16").args[1]
    loaded = LoadSlider.execute(file, 50.0, False, "calibrated").args[0][0]
    of_file, points = (torch.tensor(of.calibration.points) for of in (loaded.slider.info, info))
    torch.testing.assert_close(of_file, points, rtol=1e-5, atol=1e-5)
    assert loaded.strength[0] == pytest.approx(info.calibration.strength(50), rel=1e-5)


def test_what_tells_no_effect_is_refused(pocket, slider):
    blind = blinded(load_pocket()[3])
    with pytest.raises(ValueError, match="vision encoder pocket vision gave all 28 images the same embedding"):
        run(pocket, Stack.of(slider), clip_vision=blind)
    with pytest.raises(ValueError, match=r"Calibrate Slider: .* nothing to measure with. Connect a CLIP vision"):
        run((tiny_model("SD15"), *pocket[1:]), Stack.of(slider))
    distances = Instruments(lpips=lambda images, originals: torch.zeros(len(images)))
    with pytest.raises(
        ValueError, match=r"LPIPS tells distances alone. Connect a CLIP vision encoder to clip_vision"
    ):
        calibrate_stack(None, Stack.of(slider), [EditTexts()], None, distances, None)


def test_a_slider_that_does_nothing_fails_in_plain_words(pocket, slider):
    nothing = Slider("nothing", {name: change.scaled(0.0) for name, change in slider.layers.items()})
    stack, sheet, _, lines = run(pocket, Stack.of(nothing), limit=1.0)
    assert stack[0].slider.info.calibration is None and sheet.shape[1:] == (2 * 480, 2 * 720, 3)
    warned = [line["text"] for line in lines if line["kind"] == WARNING]
    assert warned[0] == "nothing: fails" and "nothing beyond chance" in warned[1] and "Apply Sliders" in warned[1]


def test_cancelling_keeps_what_was_made(pocket, slider, monkeypatch):
    """It is cancelled in its second stage: the first, with the originals at six strengths, has 28 images."""

    def cancel(done, of):
        assert done <= of
        if done > 28:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(calibrating, "watch_images", lambda node_id: cancel)
    stack, sheet, report, _ = run(pocket, Stack.of(slider) + Stack.of(slider, 3.0), scale=EACH_END)
    assert stack[0].slider.info.calibration is not None and stack[1].slider is slider
    assert stack[1].strength == (3.0,)
    assert "pocket sky is calibrated by what was sampled until then; not calibrated: pocket sky." in report
    assert sheet.shape[1] == 2 * 480


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"clip": None}, "Calibrate Slider: the checkpoint has no CLIP"),
        ({"vae": None}, "Calibrate Slider: the checkpoint has no VAE"),
        ({"sliders": Stack()}, "Calibrate Slider takes at least one slider"),
        ({"more": "a\nb"}, "Calibrate Slider: more takes a line for each slider"),
        ({"limit": 0.0}, "largest strength to try must be positive"),
        ({"broken": 1.0}, "broken must lie between 0 and 1"),
        ({"seeds": "x"}, "Seeds must be whole numbers"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_sampled(pocket, slider, wrong, why):
    model, clip, vae = pocket
    latent = {"samples": torch.zeros(1, 8, 16, 16)}
    given = {"model": model, "clip": clip, "vae": vae, "sliders": Stack.of(slider), "latent": latent}
    with pytest.raises(ValueError, match=why):
        CalibrateSlider.execute(**{**given, **INPUTS, **wrong})
