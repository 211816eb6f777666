"""Raw and calibrated units on every node that takes a strength."""

import pytest
import torch
from concept_sliders.nodes import NODES
from concept_sliders.nodes.applying import SliderStrip
from concept_sliders.nodes.composing import PickSlider, ScaleSliders, SweepSliders
from concept_sliders.nodes.loading import LoadSlider, SaveSlider
from concept_sliders.nodes.measuring_inputs import plan_of
from concept_sliders.nodes.report import KEY, WARNING
from concept_sliders.sliders.calibration import Calibration
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack

MAP = Calibration(((-40.0, -2.0), (0.0, 0.0), (50.0, 0.5), (100.0, 1.5)), "age", Gate(0.2))
RAW_ALONE = {
    "AuditionSlider",  # there is no slider yet that could have a calibration
    "ImagePairsFromFolder",
    "ShiftPrompt",  # directions of a prompt are no sliders, and have no file
    "SliderReport",  # Combine Sliders mixes weights by its effects, which are of one strength for all sliders
}
LATENT = {"samples": torch.zeros(2, 4, 8, 8)}


def of_strengths(schema):
    """Inputs whose value is the strength of a slider."""
    return {each.id for each in schema.inputs} & {"strength", "strengths", "values"}


def slider(**info):
    return Slider("age", {"lora_unet_a": LowRank(torch.ones(1, 3), torch.ones(2, 1))}, SliderInfo(**info))


@pytest.fixture
def file(loras):
    """The name of a calibrated slider's file."""
    info = {"calibration": MAP, "useful_range": MAP.useful_range, "gate": MAP.gate}
    return SaveSlider.execute(Stack.of(slider(**info)), "age", "float32").args[1]


def warned(output):
    return [line["text"] for line in output.ui[KEY] if line["kind"] == WARNING]


def test_every_node_that_takes_a_strength_offers_both_units_last():
    taking = {node.__name__: node.define_schema() for node in NODES if of_strengths(node.define_schema())}
    assert {"LoadSlider", "ScaleSliders", "SweepSliders", "MeasureSlider"} <= set(taking)
    for name in set(taking) - RAW_ALONE:
        units = taking[name].inputs[-1]
        assert (units.id, units.default, units.optional) == ("units", "raw", True), name
        assert units.as_dict()["options"] == ["raw", "calibrated"]


def test_load_slider(file):
    assert LoadSlider.execute(file, 25.0, True, "calibrated").args[0][0].strength == (0.25,)
    assert LoadSlider.execute(file, 25.0, True).args[0][0].strength == (25,)
    output = LoadSlider.execute(file, 25.0, True, "calibrated")
    assert any(
        "calibrated by age: units -40 to 100 are strengths -2 to 1.5" in line["text"] for line in output.ui[KEY]
    )
    assert warned(output) == []


def test_load_slider_says_what_its_units_do_not_hold_for(file):
    assert warned(LoadSlider.execute(file, 25.0)) == []
    (without_gate,) = warned(LoadSlider.execute(file, 25.0, False, "calibrated"))
    assert "calibrated where it acts from 0.2 to 1" in without_gate
    (beyond,) = warned(LoadSlider.execute(file, -80.0, True, "calibrated"))
    assert "end at -40 and 100" in beyond


def test_a_file_that_is_not_calibrated_says_what_to_do(loras):
    name = SaveSlider.execute(Stack.of(slider(useful_range=(-1.0, 2.0))), "plain", "float32").args[1]
    output = LoadSlider.execute(name, 50.0, False, "calibrated")
    assert output.args[0][0].strength == (1,)
    (note,) = warned(output)
    assert "plain is not calibrated" in note and "Calibrate Slider" in note


def test_scale_sliders_scales_the_effect():
    stack = Stack.of(slider(calibration=MAP), 1.5)
    assert ScaleSliders.execute(stack, 0.5, "calibrated").args[0][0].strength == (0.5,)
    assert ScaleSliders.execute(stack, 0.5).args[0][0].strength == (0.75,)
    assert warned(ScaleSliders.execute(Stack.of(slider()), 0.5, "calibrated"))


def test_pick_slider():
    stack = Stack.of(slider(), 0.0) + Stack.of(slider(calibration=MAP), 0.0)
    assert PickSlider.execute(stack, 2, 75.0, "calibrated").args[0][0].strength == (1,)
    output = PickSlider.execute(stack, 1, -2.0)
    assert len(output.args[0]) == 1 and output.args[0][0].strength == (-2,) and warned(output) == []
    assert [line["text"] for line in output.ui[KEY]] == ["age"]
    assert warned(PickSlider.execute(stack, 1, 50.0, "calibrated"))


def test_one_slider_of_a_stack_is_saved_once_it_is_picked(loras):
    stack = Stack.of(slider(), 0.0) + Stack.of(slider(), 0.0)
    with pytest.raises(ValueError, match=r"takes one slider; this stack has 2\. Pick Slider takes one out"):
        SaveSlider.execute(stack, "two", "float32")
    with pytest.raises(ValueError, match="'age' is at strength 0, and its file would do nothing"):
        SaveSlider.execute(PickSlider.execute(stack, 2, 0.0).args[0], "none", "float32")
    name = SaveSlider.execute(PickSlider.execute(stack, 2, 2.0).args[0], "second", "float32").args[1]
    change = LoadSlider.execute(name, 1.0).args[0][0].slider.layers["lora_unet_a"]
    torch.testing.assert_close(change.up @ change.down, torch.full((2, 3), 2.0))


def test_sweep_sliders_and_the_strips_labels():
    stack = Stack.of(slider(calibration=MAP))
    swept, latent = SweepSliders.execute(stack, LATENT, "-40, 0, 75", 1, "calibrated").args
    assert swept[0].strength == (-2, 0, 1) * 2 and latent["samples"].shape[0] == 6
    images = torch.zeros(6, 64, 64, 3)
    strips = [SliderStrip.execute(images, 64, swept, "", units).args[0] for units in ("raw", "calibrated")]
    by_hand = SliderStrip.execute(images, 64, swept, "-40, 0, +75").args[0]
    assert torch.equal(strips[1], by_hand) and not torch.equal(strips[0], by_hand)


def test_measure_slider_samples_the_strengths_that_controls_stand_for():
    assert plan_of(Stack.of(slider(calibration=MAP)), "a", "1", "-40, 75", 4, "calibrated").strengths_of(0) == (-2, 1)


def test_saving_at_a_strength_keeps_the_same_images_at_the_same_control(file):
    half = ScaleSliders.execute(LoadSlider.execute(file, 1.0, True).args[0], 0.5).args[0]
    saved = SaveSlider.execute(half, "half", "float32").args[1]
    again = LoadSlider.execute(saved, 75.0, True, "calibrated").args[0][0]
    assert again.strength == (2.0,) and again.slider.info.useful_range == (-4, 3)
