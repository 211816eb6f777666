"""Sliders on every family of models the host builds, and the table that says so."""

import os
from functools import cache
from pathlib import Path

import pytest
from concept_sliders.tests.host.families import FAMILIES, in_short, table
from concept_sliders.tests.host.family_checks import CHECKS, Subject
from concept_sliders.tests.host.known_gaps import REASONS

README = Path(__file__).parents[2] / "README.md"
PAGE = README.parent / "docs" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"


def families(check):
    """All of them; those on which the check is known to fail are marked."""
    return pytest.mark.parametrize(
        "family",
        [
            pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=REASONS[check, name]))
            if (check, name) in REASONS
            else name
            for name in FAMILIES
        ],
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a check says about a family, or what it raised; models and outcomes are shared by all tests."""
    folder = tmp_path_factory.mktemp("families")
    subject = cache(lambda family: Subject(family, folder))
    return lambda check, family: subject(family).outcome(check)


def said(result):
    if isinstance(result, Exception):
        raise result
    assert result


@families("loads")
def test_a_slider_loads_and_leaves_no_trace(outcome, family):
    said(outcome("loads", family))


@families("acts")
def test_it_acts_as_in_the_stock_loader(outcome, family):
    said(outcome("acts", family))


@families("namings")
def test_every_naming_acts_as_in_the_stock_loader(outcome, family):
    said(outcome("namings", family))


@families("sweeps")
def test_rows_are_the_runs_they_would_be_alone(outcome, family):
    said(outcome("sweeps", family))


@families("gates")
def test_a_gate_is_a_change_of_models_by_hand(outcome, family):
    said(outcome("gates", family))


@families("trains")
def test_a_slider_trains_in_place(outcome, family):
    said(outcome("trains", family))


@families("saves")
def test_a_slider_comes_back_from_its_file(outcome, family):
    said(outcome("saves", family))


def test_table_is_up_to_date(outcome):
    results = {family: {check: outcome(check, family) for check in CHECKS} for family in FAMILIES}
    page = table(results, REASONS)
    if os.environ.get("CONCEPT_SLIDERS_WRITE_TABLES") == "1":
        PAGE.write_text(page, encoding="utf-8")
        before, _, after = _around_the_table()
        README.write_text(f"{before}{BEGIN}\n{in_short(page)}\n{END}{after}", encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
    assert _around_the_table()[1].strip() == in_short(page)


def _around_the_table():
    """The README before its table of families, the table, and the README after it."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after
