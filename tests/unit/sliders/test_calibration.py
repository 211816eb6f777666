"""Calibrated units: the map itself, in files, with a strength in the weights, and merged."""

import json

import pytest
import torch
from concept_sliders.sliders.calibration import Calibration
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.metadata import info_from_header, write_header
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.merge_sliders import merged_stack
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack

MAP = Calibration(((-40.0, -2.0), (0.0, 0.0), (50.0, 0.5), (100.0, 1.5)), "age", Gate(0.2))


@pytest.fixture
def slider():
    torch.manual_seed(0)
    layers = {"lora_unet_a": LowRank(torch.randn(2, 5), torch.randn(6, 2))}
    return Slider("age", layers, SliderInfo("young", "old", MAP.useful_range, calibration=MAP))


def test_it_is_linear_between_its_points_and_ends_with_them():
    assert [MAP.strength(c) for c in (-100, -40, -20, 0, 25, 50, 75, 100)] == [-2, -2, -1, 0, 0.25, 0.5, 1, 1.5]
    assert [MAP.control(s) for s in (-9, -1, 0, 1, 9)] == [-40, -20, 0, 75, 100]


def test_a_file_keeps_it(slider, tmp_path):
    save_slider(slider, tmp_path / "age.safetensors")
    loaded = load_slider(tmp_path / "age.safetensors").info
    assert (loaded.calibration, loaded.useful_range) == (MAP, (-2.0, 1.5))


def test_a_file_without_it_has_none(slider):
    bare = Slider("age", slider.layers)
    header = write_header(bare)
    assert "calibration" not in json.loads(header["concept_sliders"])
    assert info_from_header(header, "").calibration is None


@pytest.mark.parametrize("strength", [2.0, -0.5])
def test_a_strength_in_the_weights_goes_into_the_map(slider, strength):
    baked, _ = Stack.of(slider, strength)[0].as_slider("age")
    info, sign = baked.info, 1 if strength > 0 else -1
    assert (info.less, info.more) == (("young", "old") if sign > 0 else ("old", "young"))
    assert info.useful_range == info.calibration.useful_range
    for control in (-40, -10, 0, 30, 100):  # the same change of the weights at the same place of the control
        assert strength * info.calibration.strength(sign * control) == pytest.approx(MAP.strength(control))


def test_of_no_strength_nothing_is_calibrated(slider):
    assert slider.info.at_strength(0).calibration is None


def test_a_range_that_nobody_knows_stays_unknown():
    assert SliderInfo().at_strength(2).useful_range == SliderInfo.useful_range
    assert SliderInfo(useful_range=(-1, 3)).at_strength(2).useful_range == (-0.5, 1.5)


def test_merging_one_slider_keeps_it_and_merging_several_does_not(slider):
    alone, _ = merged_stack(Stack.of(slider, 0.5), 1, "small")
    assert alone[0].slider.info.calibration == MAP.at_strength(0.5) and alone[0].slider.info.more == "old"
    both, _ = merged_stack(Stack.of(slider) + Stack.of(slider, 2.0), 0, "both")
    assert both[0].slider.info.calibration is None


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((0.0, 0.0),),
        ((-100.0, -1.0), (100.0, 1.0)),
        ((0.0, 0.0), (50.0, 1.0), (50.0, 2.0)),
        ((0.0, 0.0), (50.0, 1.0), (60.0, 1.0)),
        ((0.0, 0.0), (101.0, 1.0)),
        ((0.0, 0.0), (100.0, float("inf"))),
    ],
)
def test_what_is_no_map_is_refused(points):
    with pytest.raises(ValueError, match="calibration"):
        Calibration(points)


@pytest.mark.parametrize("value", [3, {}, {"points": 3}, {"points": [[0]]}, {"points": [[0, 0], [1, "x"]]}, None])
def test_a_header_with_something_else_in_its_place_is_said(slider, value):
    header = write_header(slider)
    own = {**json.loads(header["concept_sliders"]), "calibration": value}
    with pytest.raises(ValueError, match="concept_sliders cannot be understood"):
        info_from_header({"concept_sliders": json.dumps(own)}, "")
