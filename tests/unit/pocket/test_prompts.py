"""What the measuring asks for: how far the world itself moves one number along with another."""

import pytest
from concept_sliders.pocket.measuring.prompts import OPPOSITIONS, world_shift
from scipy.stats import multivariate_normal, norm

OF = {opposition.column: opposition for opposition in OPPOSITIONS}


def test_ties_of_the_world_show_and_nothing_else_does():
    shift = world_shift(OF["age"])
    # both ends lie alike about the middle; above the upper fifth's edge, hair shade is Phi(0.5 a + sqrt(0.75) b)
    grid = [norm.ppf(0.8 + 0.2 * (k + 0.5) / 2000) for k in range(2000)]
    expected = 2 * (sum(norm.cdf(0.5 * a / (1 + 0.75) ** 0.5) for a in grid) / len(grid) - 0.5)
    assert shift["hair_shade"] == pytest.approx(expected, abs=0.02)
    edge = norm.ppf(0.6)
    both = multivariate_normal.cdf([-edge, norm.ppf(0.2)], cov=[[1, -0.6], [-0.6, 1]]) / 0.2  # glasses | young
    old = multivariate_normal.cdf([-edge, norm.ppf(0.2)], cov=[[1, 0.6], [0.6, 1]]) / 0.2
    assert shift["glasses"] == pytest.approx(old - both, abs=0.03)
    for name in ("smile", "eye_size", "woman", "hat", "sky"):
        assert abs(shift[name]) < 0.04, name


@pytest.mark.parametrize("column", ["hat", "ink sketch", "spoiled"])
def test_yes_or_no_and_style_have_ends_too(column):
    assert all(abs(value) < 0.04 for value in world_shift(OF[column]).values())
