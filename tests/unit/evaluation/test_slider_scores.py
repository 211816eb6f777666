"""The scores of a slider as a whole, on numbers worked out by hand."""

import pytest
import torch
from concept_sliders.evaluation.slider_scores import (
    conceptual_range,
    conceptual_smoothness,
    overall_score,
    semantic_preservation,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_range_is_what_both_ends_gain_and_lose():
    more, less = numbers(20, 24, 30), numbers(28, 25, 24)
    assert float(conceptual_range(more, less)) == (10 + 4) / 2
    assert float(conceptual_range(more.flip(0), less.flip(0))) == -7


def test_even_steps_are_perfectly_smooth():
    assert float(conceptual_smoothness(numbers(0.25, 0.5, 0.75), numbers(0.25, 0.5, 0.75))) == pytest.approx(0)


def test_the_smoothness_is_the_spread_of_all_gaps_that_rise():
    more = numbers(0.2, 0.5, 0.4)  # gaps 0.2, 0.3, -0.1 (left out), 0.6
    less = numbers(0.1, 0.3)  # gaps 0.1, 0.2, 0.7
    expected = numbers(0.2, 0.3, 0.6, 0.1, 0.2, 0.7).std(correction=0)
    assert float(conceptual_smoothness(more, less)) == pytest.approx(float(expected))


def test_a_gap_of_nothing_counts():
    """A slider that stands still for a step is not smooth there."""
    expected = numbers(0.2, 0.0, 0.4, 0.4).std(correction=0)
    assert float(conceptual_smoothness(numbers(0.2, 0.2, 0.6), numbers(0.3))) == pytest.approx(float(expected))


def test_a_slider_measured_on_one_side_has_the_gaps_of_that_side():
    more = numbers(0.2, 0.6)
    expected = numbers(0.2, 0.4, 0.4).std(correction=0)
    assert float(conceptual_smoothness(more, numbers(0.3))) == pytest.approx(float(expected))


def test_many_series_are_scored_at_once():
    more, less = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at_once = conceptual_smoothness(more, less)
    one_by_one = [conceptual_smoothness(m, n) for m, n in zip(more, less)]
    torch.testing.assert_close(at_once, torch.stack(one_by_one))
    assert conceptual_range(more, less).shape == (5,)


def test_the_overall_score_weighs_range_against_distance_and_adds_smoothness():
    assert float(semantic_preservation(numbers(0.1, 0.3, 0.2))) == pytest.approx(0.2)
    assert float(overall_score(numbers(6), numbers(0.25), numbers(0.5))) == pytest.approx(6 / 1.5 + 0.75)
