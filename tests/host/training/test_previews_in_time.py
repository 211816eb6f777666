"""When previews are shown, by a clock of the tests' own: early, and for a small share of a run's time."""

from types import SimpleNamespace

import pytest
import torch
from concept_sliders.comfy_host.preview_budget import FIRST, SHARE, Looks
from concept_sliders.training.previews import Strip


def test_looks_take_a_small_share_of_the_time_whatever_they_cost():
    """By a clock of its own: steps of a second, looks of two."""
    clock = [0.0]
    looks, made = Looks(now=lambda: clock[0]), []
    for step in range(1000):
        clock[0] += 1.0
        if looks.has_time():
            made.append(step)
            with looks.timed():
                clock[0] += 2.0
    assert made[0] == 0 and looks.share <= SHARE
    assert len(made) > 0.9 * SHARE * clock[0] / 2.0


def previews(steps, cost, begun=0, early_stop=0.0):
    """After which steps a run shows previews of such a cost, in steps' time, and the share of its time they take.

    By a clock of its own. early_stop: what its looks cost, every 20 steps.
    """
    clock, shown, spent = [0.0], [], 0.0
    looks = Looks(now=lambda: clock[0])
    strip = Strip(None, looks, 20, begun, steps)
    strip.half_done = SimpleNamespace(at=lambda strengths: torch.zeros(3, 1))
    for step in range(begun + 1, steps + 1):
        clock[0] += 0.25
        if early_stop and step % 20 == 0:
            with looks.timed():
                clock[0] += 0.25 * early_stop
        if strip.is_due(step):
            with looks.timed():
                strip.latents(step)
                clock[0] += 0.25 * cost
            shown.append(step)
            spent += 0.25 * cost
    return shown, spent / clock[0]


@pytest.mark.parametrize("steps", [100, 130, 200, 400, 1000])
@pytest.mark.parametrize("cost", [1.0, 2.5, FIRST, 5.0])
def test_the_first_preview_comes_early_and_all_together_take_a_small_share(steps, cost):
    shown, share = previews(steps, cost)
    assert shown[0] == 20 and share <= (SHARE if cost <= FIRST else 0.05)
    assert len(shown) == 1 or shown[1] * SHARE >= cost  # by then the first one is no more than its share


@pytest.mark.parametrize(("steps", "begun"), [(8, 0), (22, 0), (60, 0), (90, 0), (400, 380), (400, 310)])
def test_what_is_short_has_none(steps, begun):
    assert previews(steps, 2.5, begun) == ([], 0.0)


def test_a_run_that_goes_on_has_its_first_as_early():
    shown, share = previews(400, 2.5, begun=200)
    assert shown[0] == 220 and share <= SHARE


def test_previews_wait_for_the_looks_of_the_early_stop():
    assert previews(400, 2.5, early_stop=20.0)[0] == []
    shown, share = previews(400, 2.5, early_stop=0.2)
    assert shown[0] == 20 and share <= SHARE
