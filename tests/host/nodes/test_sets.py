"""Sets of sliders: a stack goes into a folder whole or not at all, and comes out of it as it was."""

from dataclasses import replace

import pytest
import torch
from concept_sliders.nodes.loading import LoadSlider
from concept_sliders.nodes.sets import LoadSliderSet, SaveSliderSet, common_name, slider_sets
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.full_disk import full_disk
from concept_sliders.tests.support.reports import shown, warned

LAYER = "diffusion_model.blocks.0.proj"


def slider(name, value, **info):
    return Slider(name, {LAYER: LowRank(torch.full((2, 40), value), torch.ones(30, 2))}, SliderInfo(**info))


def directions(count=11, strength=0.0):
    """As many as it takes for the order of names to differ from that of numbers."""
    each = (slider(f"direction {n} {'old' if n == 1 else 'wide'}", float(n), less="young", more="old") for n in
            range(1, count + 1))  # fmt: skip
    return sum((Stack.of(one, strength) for one in each), Stack())


def saved(stack, name="", precision="float32"):
    return SaveSliderSet.execute(stack, name, precision)


def test_a_stack_comes_out_of_its_folder_as_it_was(loras):
    stack = directions()
    out = saved(stack)
    assert out.args == (stack, "sliders/direction") and shown(out) == ["11 sliders saved in sliders/direction"]
    again = LoadSliderSet.execute("sliders/direction", 0.0)
    found = again.args[0]
    assert [each.slider.name for each in found] == [each.slider.name for each in stack]
    for before, after in zip(stack, found, strict=True):
        assert torch.equal(before.slider.layers[LAYER].down, after.slider.layers[LAYER].down)
        assert (after.slider.info.less, after.slider.info.more, after.strength) == ("young", "old", (0.0,))
    assert shown(again)[0].startswith("1 direction 1 old, from young to old")
    assert len(shown(again)) == 11 and not warned(again)
    assert sorted(path.name for path in (loras / "sliders").iterdir()) == ["direction"]


def test_each_file_is_one_that_load_slider_reads(loras):
    saved(directions(2), "mine")
    out = LoadSlider.execute("mine/02 direction 2 wide.safetensors", 1.0)
    assert out.args[0][0].slider.name == "direction 2 wide"


def test_strengths_are_not_stored_and_gates_are(loras):
    gated = Stack(tuple(replace(each, strength=(0.5,), gates=(Gate(0.2, 0.9),)) for each in directions(2)))
    only_cond = replace(gated[0], cond_or_uncond="cond")
    out = saved(Stack((only_cond, gated[1])), "gated")
    assert warned(out) == ["direction 1 old: not stored, set it again after loading: that it acts on cond only"]
    first = LoadSliderSet.execute("gated", 1.5).args[0][0]
    assert first.strength == (1.5,) and first.gates == (Gate(0.2, 0.9),)
    assert torch.equal(first.slider.layers[LAYER].down, only_cond.slider.layers[LAYER].down)
    assert LoadSliderSet.execute("gated", 1.0, gated=False).args[0][0].gates == ()


def test_a_folder_that_is_there_is_left_as_it_is(loras):
    saved(directions(2), "mine")
    before = {path: path.read_bytes() for path in (loras / "mine").iterdir()}
    assert saved(directions(3), "mine").args[1] == "mine_2"
    assert {path: path.read_bytes() for path in (loras / "mine").iterdir()} == before
    assert {name: len(files) for name, files in slider_sets().items() if "mine" in name} == {"mine": 2, "mine_2": 3}


def test_on_a_full_disk_there_is_no_part_of_a_set(loras):
    stack = Stack(
        (*directions(2), Stack.of(Slider("wide", {LAYER: LowRank(torch.ones(9, 999), torch.ones(9, 9))}))[0])
    )
    with full_disk(20_000), pytest.raises(OSError, match=r"Cannot write the set of sliders to .*sliders.set"):
        saved(stack)
    assert list((loras / "sliders").iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("../out", "leads out of"), ("x" * 300, "too long")])
def test_names_that_no_folder_can_have_are_refused_before_anything_runs(loras, name, message):
    assert message in SaveSliderSet.validate_inputs(name=name)
    with pytest.raises(ValueError, match=message):
        saved(directions(2), name)


def test_what_cannot_be_done_is_said(loras):
    with pytest.raises(ValueError, match="the stack is empty"):
        saved(Stack())
    with pytest.raises(FileNotFoundError, match="no folder of sliders 'gone'"):
        LoadSliderSet.execute("gone", 1.0)


def test_a_set_is_read_again_when_one_of_its_files_changes_or_goes(loras):
    saved(directions(3), "mine")
    first = LoadSliderSet.fingerprint_inputs("mine")
    assert LoadSliderSet.fingerprint_inputs("mine") == first
    (loras / "mine" / "02 direction 2 wide.safetensors").unlink()
    assert LoadSliderSet.fingerprint_inputs("mine") != first


def test_strengths_in_calibrated_units_are_refused_for_sliders_without_a_map_or_said(loras):
    saved(directions(2), "mine")
    out = LoadSliderSet.execute("mine", 50.0, units="calibrated")
    assert any("calibrated" in line for line in warned(out))


@pytest.mark.parametrize(("names", "common"), [
    (["direction 1 old", "direction 2 wide"], "direction"),
    (["age"], "age"),
    (["age", "smile"], "set"),
    (["two words 1", "two words 2"], "two words"),
])  # fmt: skip
def test_a_set_is_called_what_its_sliders_names_have_in_common(names, common):
    assert common_name(names) == common


def test_the_files_of_a_set_hold_its_sliders_headers(loras):
    saved(Stack.of(slider("age", 1.0, useful_range=(-3.0, 3.0), recipe={"kind": "direction"})), "one")
    info = load_slider(loras / "one" / "01 age.safetensors").info
    assert info.useful_range == (-3.0, 3.0) and info.recipe == {"kind": "direction"}
