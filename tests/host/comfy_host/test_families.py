"""Sliders on every family of models ComfyUI builds, and the table that says so."""

import os
from functools import cache
from inspect import isclass
from pathlib import Path

import comfy.model_base
import pytest
from comfy.model_base import BaseModel
from concept_sliders.comfy_host.batch_entries import BATCH_FIRST_NETWORKS, network_of
from concept_sliders.tests.support.families import FAMILIES, table
from concept_sliders.tests.support.family_checks import CHECKS, Subject
from concept_sliders.tests.support.known_gaps import REASONS

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
# Networks with layers whose first dimension is not the batch, or that see all batch entries at once
ENTRIES_TOGETHER = {
    f"comfy.ldm.{name}"
    for name in (
        "ace.ace_step15.AceStepConditionGenerationModel",
        "ace.model.ACEStepTransformer2DModel",
        "cosmos.model.GeneralDIT",
        "hidream.model.HiDreamImageTransformer2DModel",
        "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain",
        "hydit.models.HunYuanDiT",
        "minimax.model.MiniMaxH3Model",
        "pixart.pixartms.PixArtMS",
        "pixeldit.model.PixDiT_T2I",
    )
}


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
def subject(tmp_path_factory):
    """A family's model and what its checks share, one for all tests."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda family: Subject(family, folder))


@pytest.fixture(scope="module")
def outcome(subject):
    """What a check says about a family, or what it raised."""
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
def test_batch_entries_are_the_runs_they_would_be_alone(outcome, family):
    said(outcome("sweeps", family))


@families("cond_uncond")
def test_a_slider_acts_on_cond_or_uncond(outcome, family):
    said(outcome("cond_uncond", family))


@families("gates")
def test_a_gate_is_a_change_of_models_by_hand(outcome, family):
    said(outcome("gates", family))


@families("trains")
def test_a_slider_trains_in_place(outcome, family):
    said(outcome("trains", family))


@families("saves")
def test_a_slider_comes_back_from_its_file(outcome, family):
    said(outcome("saves", family))


def test_networks_that_keep_batch_entries_apart_are_those_of_these_families(subject):
    """Holds the list against what sweeps and cond_uncond have shown."""
    assert {network_of(subject(family).model.model) for family in FAMILIES} - ENTRIES_TOGETHER == BATCH_FIRST_NETWORKS


def test_table_is_up_to_date(outcome, subject):
    results = {family: {check: outcome(check, family) for check in CHECKS} for family in FAMILIES}
    seen = {type(subject(family).model.model) for family in FAMILIES}
    every = [each for each in vars(comfy.model_base).values() if isclass(each) and issubclass(each, BaseModel)]
    page = table(results, REASONS, [each.__name__ for each in every if each not in seen])
    if os.environ.get("CONCEPT_SLIDERS_WRITE_TABLES") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
