"""Adherence to captions, from readings that are made up."""

import pytest
import torch
from concept_sliders.pocket.measuring.adherence import Adherence
from concept_sliders.pocket.measuring.probe import COLUMNS, Readings
from concept_sliders.pocket.measuring.prompts import degrees_of
from concept_sliders.pocket.world.portrait import BINARY, CONTINUOUS, STYLES, portraits

PEOPLE = portraits(40, seed=5)


def followed(**changes):
    """Readings that are what the captions of PEOPLE name, but for changes: {column: {person: reading}}."""
    values = torch.zeros(len(PEOPLE), len(COLUMNS))
    for name in CONTINUOUS:
        values[:, COLUMNS.index(name)] = torch.tensor(degrees_of(PEOPLE, name))
    for name in (*BINARY, *STYLES):
        truth = [person.style == name if name in STYLES else getattr(person, name) for person in PEOPLE]
        values[:, COLUMNS.index(name)] = torch.tensor(truth).float()
    for column, readings in changes.items():
        for person, reading in readings.items():
            values[person, COLUMNS.index(column)] = reading
    return Adherence(PEOPLE, torch.zeros(len(PEOPLE), 8, 8, 3), Readings(values))


def test_captions_that_are_followed_are_followed_by_every_figure():
    assert followed().figures() == {name: pytest.approx(1, abs=1e-5) for name in (*CONTINUOUS, *BINARY, "style")}


def test_what_is_read_wrong_is_missing_in_its_own_figure_alone_and_is_the_furthest():
    hats = {index: 1.0 - PEOPLE[index].hat for index in (3, 17)}
    shown = followed(hat=hats, eye_size={9: 1.0 - round(degrees_of(PEOPLE, "eye_size")[9])})
    figures = shown.figures()
    assert figures["hat"] == pytest.approx(38 / 40) and figures["eye_size"] < 0.99
    assert all(figures[name] == pytest.approx(1, abs=1e-5) for name in figures if name not in ("hat", "eye_size"))
    assert set(shown.furthest("hat", 2)) == {3, 17} and shown.furthest("eye_size", 1) == [9]
    assert set(shown.furthest("hat", 99)) == {3, 17} and shown.furthest("glasses", 8) == []


def test_the_sheet_has_a_row_of_samples_and_one_of_drawings_for_each_column_that_is_missed():
    shown = followed(hat={3: 1.0 - PEOPLE[3].hat}, age={5: 0.0, 6: 1.0})
    drawings = torch.ones(len(PEOPLE), 8, 8, 3)
    one, other = (shown.sheet(drawings, columns=columns, count=4) for columns in (("hat", "glasses"), ("hat",)))
    two = shown.sheet(drawings, columns=("hat", "age"), count=4)
    assert one.size == other.size and two.width > one.width and two.height > 1.8 * one.height
