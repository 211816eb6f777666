"""What a number stands for in raw and in calibrated units, with a calibration and without."""

import pytest
import torch
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.sliders.calibration import Calibration
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.units import CALIBRATED, RAW, controls_in, strengths_in, unit_notes

MAP = Calibration(((-40.0, -2.0), (0.0, 0.0), (50.0, 0.5), (100.0, 1.5)), "age")


def slider(**info):
    return Slider("age", {"lora_unet_a": LowRank(torch.ones(1, 3), torch.ones(2, 1))}, SliderInfo(**info))


def test_raw_is_the_strength():
    assert strengths_in(RAW, slider(calibration=MAP), [-3.0, 70.0]) == (-3, 70)
    assert unit_notes(RAW, slider(), [500.0]) == ()


def test_calibrated_is_a_control_and_held_at_the_ends():
    calibrated = slider(calibration=MAP)
    assert strengths_in(CALIBRATED, calibrated, [-90, -20, 0, 75, 120]) == (-2, -1, 0, 1, 1.5)
    assert controls_in(CALIBRATED, calibrated, [-1.0, 1.0]) == (-20, 75)
    (note,) = unit_notes(CALIBRATED, calibrated, [-90, -20, 120])
    assert "end at -40 and 100" in note and "-90, 120 is held" in note
    assert unit_notes(CALIBRATED, calibrated, [-40, 100]) == ()


@pytest.mark.parametrize(
    ("useful", "strengths"),
    [((-1.5, 3.0), (-1.5, 0, 1.5, 3)), ((0.0, 2.0), (0, 0, 1, 2)), ((-4.0, -1.0), (-4, 0, 0, 0))],
)
def test_without_a_calibration_the_ends_are_those_of_the_useful_range_and_it_is_said(useful, strengths):
    bare = slider(useful_range=useful)
    assert strengths_in(CALIBRATED, bare, [-100, 0, 50, 100]) == strengths
    assert "age is not calibrated" in unit_notes(CALIBRATED, bare)[0]


def test_other_units_are_refused():
    with pytest.raises(ValueError, match="raw, calibrated; got 'percent'"):
        strengths_in("percent", slider(), [1.0])


def test_a_stack_scales_the_effect():
    stack = Stack.of(slider(calibration=MAP), (1.5, -1.0))
    assert stack.scaled(0.5, CALIBRATED)[0].strength == (0.5, -0.5)
    assert stack.scaled(-0.2, CALIBRATED)[0].strength == pytest.approx((-1.0, 0.04))
    assert stack.scaled(0.5)[0].strength == (0.75, -0.5)
    beyond = Stack.of(slider(calibration=MAP), 7.0)
    assert beyond.scaled(1.0, CALIBRATED)[0].strength == (7,)


def test_a_sweep_in_calibrated_units():
    swept = Stack.of(slider(calibration=MAP)).swept(0, [-40, 0, 50], 2, CALIBRATED)
    assert swept[0].strength == (-2, 0, 0.5, -2, 0, 0.5)


def test_a_plan_has_each_sliders_own_strengths_once():
    stack = Stack.of(slider(calibration=MAP)) + Stack.of(slider(useful_range=(-1.0, 2.0)))
    plan = SweepPlan(stack, ("a",), (1, 2), (-100.0, -50.0, 50.0), units=CALIBRATED)
    assert plan.strengths_of(0) == (-2, 0.5) and plan.strengths_of(1) == (-1, -0.5, 1)
    images = [image for batch in plan.batches() for image in batch]
    assert len(images) == plan.count == 2 * (1 + 2 + 3)
    assert {image.strength for image in images if image.slider == 0} == {-2, 0.5}


def test_a_plan_in_which_a_slider_never_acts_is_refused():
    one_sided = Calibration(((0.0, 0.0), (100.0, 1.0)))
    with pytest.raises(ValueError, match="'age' is off at all of"):
        SweepPlan(Stack.of(slider(calibration=one_sided)), ("a",), (1,), (-50.0,), units=CALIBRATED)
