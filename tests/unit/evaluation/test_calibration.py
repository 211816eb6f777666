"""Calibrations of known curves: where they saturate and break, and equal steps of the effect at equal steps."""

from math import atanh, tanh

import pytest
import torch
from concept_sliders.evaluation.calibration import (
    EACH_END,
    Criteria,
    Response,
    calibrated,
    centred_isotonic,
    isotonic,
    largest_deviation,
    side_of,
)
from concept_sliders.sliders.calibration import Calibration
from concept_sliders.sliders.gate import Gate

GRID = tuple(s / 8 for s in range(-32, 33) if s)  # -4 to 4
STEPS = torch.linspace(-1, 1, 9).tolist()


def response(effect, distortion=abs, strengths=GRID, noise=0.0, images=16):
    generator = torch.Generator().manual_seed(0)
    clean = torch.tensor([[effect(s)] * images for s in strengths], dtype=torch.float64)
    noisy = clean + noise * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    distortions = torch.tensor([[distortion(s)] * images for s in strengths], dtype=torch.float64)
    return Response(tuple(strengths), noisy, distortions, "made up")


def calibration(of, criteria=None):
    criteria = criteria or Criteria(broken=0.01)
    return calibrated(of, [side_of(of, sign, criteria) for sign in (1, -1)], criteria, Gate())


def deviation(of, effect, low=-100.0, high=100.0):
    return largest_deviation([effect(of.strength(low + (high - low) * (at + 1) / 2)) for at in STEPS])


def test_a_saturating_curve_gets_equal_steps_where_raw_strength_is_far_off():
    found = calibration(response(tanh))
    assert deviation(found, tanh) < 0.02
    low, high = found.useful_range
    assert largest_deviation([tanh(low + (high - low) * (at + 1) / 2) for at in STEPS]) > 0.5
    assert (found.low, found.high) == (-100, 100)
    assert found.strength(50) == pytest.approx(atanh(tanh(high) / 2), rel=0.01)
    assert found.control(found.strength(30)) == pytest.approx(30)


def test_it_is_saturated_where_the_slope_falls_below_its_part():
    """The slope of tanh is 1 - tanh^2: below 0.15 from atanh(sqrt(0.85)) on."""
    side = side_of(response(tanh), 1, Criteria(broken=0.01))
    assert side.saturated == side.end == pytest.approx(atanh(0.85**0.5), abs=1 / 8)
    assert side.reach == pytest.approx(tanh(side.end)) and side.share == 1 and side.is_settled


def test_a_curve_that_still_rises_is_not_saturated():
    side = side_of(response(lambda s: s), -1, Criteria())
    assert (side.end, side.saturated, side.broken, side.is_settled) == (-4, None, None, False)


def test_images_break_where_the_effect_per_distortion_falls_below_its_part():
    """s / (s + s^3) = 1 / (1 + s^2), half of what it is at 1/8 from just above 1 on."""
    side = side_of(response(lambda s: s, lambda s: abs(s) + abs(s) ** 3), 1, Criteria(broken=0.5))
    assert (side.end, side.broken) == (1.0, 1.125)


def test_an_effect_that_may_be_chance_sets_no_bar_for_broken_images():
    """At the weakest strength the mean is three times the rest per distortion, but half of the images go back."""
    of = response(lambda s: s, strengths=(0.5, 1.0, 2.0, 3.0))
    of.effects[0] = 1.5 + 20.0 * torch.tensor([1.0, -1.0]).repeat(8)
    side = side_of(of, 1, Criteria(broken=0.5))
    assert side.broken is None and side.end == 3.0


def test_a_slider_that_turns_back_ends_where_it_turns():
    side = side_of(response(lambda s: s * (4 - abs(s)), lambda s: 0.1), 1, Criteria(broken=0.01))
    assert 1.6 <= side.end <= 2 and side.reach <= 4


def test_chance_is_no_effect():
    noise = response(lambda s: 0.0, noise=1.0)
    assert [side_of(noise, sign, Criteria()).end for sign in (1, -1)] == [0, 0]
    with pytest.raises(ValueError, match="moves nothing"):
        calibrated(noise, [side_of(noise, sign, Criteria()) for sign in (1, -1)], Criteria(), Gate())


def weak_minus(s):
    return tanh(s) if s > 0 else 0.4 * tanh(s)


def test_a_weaker_side_has_the_same_steps_and_ends_earlier():
    found = calibration(response(weak_minus))
    assert found.high == 100 and found.low == pytest.approx(-40, abs=1)
    assert deviation(found, weak_minus, found.low) < 0.03
    assert found.strength(-100) == found.strength(found.low)


def test_or_goes_to_its_own_end():
    found = calibration(response(weak_minus), Criteria(broken=0.01, scale=EACH_END))
    assert (found.low, found.high) == (-100, 100)
    for low, high in ((-100, 0), (0, 100)):
        assert deviation(found, weak_minus, low, high) < 0.03
    assert deviation(found, weak_minus) > 0.3


def test_a_side_that_does_nothing_has_no_controls():
    found = calibration(response(lambda s: max(0.0, tanh(s))))
    assert (found.low, found.high) == (0, 100) and found.strength(-50) == 0


def test_noise_leaves_the_map_rising():
    noisy = response(tanh, noise=0.2)
    found = calibration(noisy)
    assert deviation(found, tanh) < 0.5
    assert Calibration.from_json(found.as_json()).points[0] == pytest.approx(found.points[0], rel=1e-5)


def test_isotonic_regression_pools_what_falls():
    assert isotonic([1.0, 3.0, 2.0, 4.0, 3.0, 2.0]) == [1, 2.5, 2.5, 3, 3, 3]
    assert centred_isotonic([-2.0, -1.0, 1.0, 2.0, 4.0], [-1.0, 0.5, 1.0, 3.0, 2.0]) == [
        (-2, -1),
        (0, 0),
        (1, 1),
        (3, 2.5),
    ]


def test_steps_of_nothing_are_as_far_off_as_a_whole_step():
    assert largest_deviation([0.0, 1.0, 2.0]) == 0
    assert largest_deviation([0.0, 1.0, 1.0]) == 1


@pytest.mark.parametrize(("name", "value"), [("saturated", 0.0), ("broken", 1.0), ("scale", "other")])
def test_criteria_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        Criteria(**{name: value})
