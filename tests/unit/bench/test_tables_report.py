"""The tables' text: means and spreads, orderings, and the places in the page that the command fills."""

import io

import numpy as np
import pytest
from concept_sliders.bench._tables_report import (
    EQUAL,
    FAILS,
    HOLDS,
    LARGEST,
    UNKNOWN,
    Ordering,
    Section,
    as_jpeg,
    begin,
    by_seed,
    mean_over,
    ordering_table,
    pm,
    ratios,
    table,
    written_into,
)
from concept_sliders.devtools.host import ROOT
from PIL import Image

PAGE = f"before\n{begin('a')}old a\n<!-- end -->\nbetween\n{begin('b')}old b\n<!-- end -->\nafter\n"


def test_a_figure_has_its_spread_over_seeds():
    assert pm([0.1, 0.2, 0.3]) == "0.200 ± 0.100"
    assert pm([0.25], 2) == "0.25"
    assert pm([]) == "-"


def test_what_was_not_measured_is_left_out():
    cells = [{"own": 0.5}, {"own": 0.25, "distance": 1.0}]
    assert by_seed(cells, "own") == [0.5, 0.25] and by_seed(cells, "distance") == [1.0]
    assert mean_over([cells, [{"own": 0.1}, {"own": 0.15}]], "own") == pytest.approx([0.3, 0.2])
    assert mean_over([cells], "kept") == []
    assert ratios([1.0, 3.0], [2.0, 4.0]) == [0.5, 0.75]
    assert ratios([1.0, 3.0], [2.0, 0.0]) == []


@pytest.mark.parametrize(
    ("greater", "smaller", "verdict", "seeds"),
    [
        ([0.5, 0.6, 0.7], [0.1, 0.2, 0.3], HOLDS, "3 of 3"),
        ([0.5, 0.6, 0.1], [0.1, 0.2, 0.3], HOLDS, "2 of 3"),
        ([0.1, 0.2, 0.4], [0.5, 0.6, 0.3], FAILS, "1 of 3"),
        ([0.2], [0.2], EQUAL, "0 of 1"),
        ([], [0.2], UNKNOWN, "-"),
    ],
)
def test_an_ordering_is_judged_by_its_means_and_counted_by_seed(greater, smaller, verdict, seeds):
    found = Ordering("more", greater, smaller)
    assert (found.verdict, found.seeds) == (verdict, seeds)
    last = ordering_table([found]).splitlines()[-1]
    assert verdict in last and last.endswith(f"| {seeds} |")


def test_a_table_is_markdown():
    assert table(("", "b"), [("x", "1")]).splitlines() == ["|  | b |", "| --- | --- |", "| x | 1 |"]
    with pytest.raises(ValueError, match="takes 2 cells"):
        table(("", "b"), [("x",)])


def test_a_part_is_written_between_its_marks_alone():
    once = written_into(PAGE, "a", "new a")
    assert once == PAGE.replace("old a", "\nnew a\n")
    assert written_into(once, "a", "new a") == once
    assert written_into(once, "b", "new b").count("old") == 0
    with pytest.raises(ValueError, match="no place for part c"):
        written_into(PAGE, "c", "new c")


def test_the_page_of_the_documentation_has_a_place_for_every_part():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for part in "abcde":
        assert f"\n{part} was here\n" in written_into(page, part, f"{part} was here")


def test_a_section_shows_its_picture_if_it_has_one():
    assert Section("a", "text\n\n").markdown == "text\n"
    shown = Section("a", "text", [("row", [])], "All of them").markdown
    assert shown == "text\n\n![All of them](results_a.jpg)\n\nAll of them.\n"


def test_a_picture_keeps_to_its_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8))
    stored = as_jpeg(noise)
    assert len(stored) <= LARGEST
    assert Image.open(io.BytesIO(stored)).width < 900
    flat = Image.new("RGB", (900, 900), (10, 200, 30))
    assert Image.open(io.BytesIO(as_jpeg(flat))).size == (900, 900)
