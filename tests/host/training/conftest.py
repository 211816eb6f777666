"""What tests of training share."""

import pytest
from concept_sliders.training import loop
from concept_sliders.training.early_stop import EarlyStop


@pytest.fixture
def evaluated_often(monkeypatch):
    """The early stop evaluates every 5 steps in place of 20, so that runs can be as many times shorter."""
    monkeypatch.setattr(EarlyStop, "EVERY", 5)


@pytest.fixture
def breaks_early(monkeypatch):
    """A loss is compared with the last 15 in place of 50, so that a run can break down as much earlier."""
    monkeypatch.setattr(loop, "_WINDOW", 15)
