"""The measures of a slider against hand-made readings and closed forms."""

import numpy as np
import pytest
from concept_sliders.pocket.measuring.effect import effect, spearman


def test_rank_correlation_of_any_rising_and_falling_function_is_one():
    x = [-3, -1, 0, 2, 7]
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, [-v for v in x]) == pytest.approx(-1)


def test_ties_share_their_rank_and_constants_do_not_correlate():
    assert spearman([1, 2, 3, 4], [0, 0, 1, 1]) == pytest.approx(2 / np.sqrt(5))
    assert spearman([1, 2, 3], [5, 5, 5]) == 0


def test_span_reach_and_the_movement_of_the_others():
    age = np.array([[0.1, 0.5, 0.9], [0.3, 0.5, 0.7]])
    still, falling = np.full((2, 3), 0.4), np.array([[0.6, 0.5, 0.4], [0.6, 0.5, 0.4]])
    readings = np.stack([age, still, falling], axis=-1)
    found = effect(readings, (-1, 0, 1), ("age", "smile", "sky"), "age", reach=0.75)
    assert found.span == pytest.approx(0.6) and found.spearman == pytest.approx(1)
    assert found.movements == pytest.approx({"smile": 0.0, "sky": 0.2})
    assert found.mean_movement == pytest.approx(0.1)


def test_movements_of_pictures_do_not_cancel_out_and_what_is_tied_is_left_out():
    rising, falling = (np.array([[0.5, *ends]]).T for ends in ((0.6, 0.8), (0.4, 0.2)))  # of one picture each
    readings = np.stack([np.concatenate([rising[1:], falling[1:]], axis=1).T] * 3, axis=-1)
    found = effect(readings, (-1, 1), ("age", "smile", "glasses"), "age", reach=1.0, apart=("glasses",))
    assert found.movements == pytest.approx({"smile": 0.0, "glasses": 0.0})
    assert found.each == pytest.approx({"smile": 0.2, "glasses": 0.2})
    assert found.mean_movement_of_each == pytest.approx(0.2) and found.apart == ("glasses",)


def test_readings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(pictures, 2, 1\)"):
        effect(np.zeros((4, 3, 1)), (0, 1), ("age",), "age", 1.0)
