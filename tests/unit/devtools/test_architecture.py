"""The drawing of the rooms: made from the imports, and as they are today."""

import pytest
from concept_sliders.devtools.architecture import DRAWING, ROOMS, arrows, drawing, levels, reached


def test_the_drawing_is_of_todays_imports():
    assert DRAWING.read_text(encoding="utf-8") == drawing(), "draw it anew: python3 -m devtools.architecture"


def test_rooms_stand_above_what_they_import():
    below = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "lone": set()}
    assert levels(below) == {"a": 2, "b": 1, "c": 0, "lone": 0}
    assert levels({"a": {"b", "tools"}, "b": {"c"}, "c": set(), "tools": set()})["tools"] == 1
    assert reached("a", below) == {"c"}


def test_rooms_that_import_each_other_are_named():
    with pytest.raises(ValueError, match="import each other: a, b"):
        levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_imports_are_read_from_every_module(tmp_path):
    up = "from ...training import loop\nfrom ..gate import Gate"
    for path, text in (("sliders/formats/x.py", up), ("training/y.py", "")):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert arrows(ROOMS, tmp_path) == {room: {"training"} if room == "sliders" else set() for room in ROOMS}
