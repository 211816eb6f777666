"""Scores of images against closed forms, and against scipy's root of a matrix."""

import numpy as np
import pytest
import torch
from concept_sliders.evaluation.scores import (
    clip_score,
    delta_clip_score,
    embedding_distance,
    frechet_distance,
)


def at_angle(degrees):
    """Vectors of different lengths at angles to the first axis."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    lengths = torch.arange(1, len(degrees) + 1, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], dim=1) * lengths[:, None]


TEXT = torch.tensor([3.0, 0.0])


def test_a_clip_score_is_a_hundred_times_the_cosine():
    expected = torch.tensor([100.0, 50.0, 0.0, -100.0], dtype=torch.float64)
    torch.testing.assert_close(clip_score(at_angle([0, 60, 90, 180]), TEXT), expected)


def test_a_delta_clip_score_has_the_sign_of_the_movement():
    moved = delta_clip_score(at_angle([60, 90]), at_angle([90, 60]), TEXT)
    torch.testing.assert_close(moved, torch.tensor([50.0, -50.0], dtype=torch.float64))


def test_an_embedding_distance_does_not_see_lengths():
    distances = embedding_distance(at_angle([0, 0, 90, 180]), at_angle([0, 60, 0, 0]))
    torch.testing.assert_close(distances, torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64))


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_stretch_what_the_formula_says():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5])
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + shift) == pytest.approx(5.25, abs=1e-6)
    # S_b = 9 S_a: tr(S + 9 S - 2 * 3 S) = 4 tr(S)
    expected = 4 * x.T.cov().trace().item() + 4 * x.mean(0).square().sum().item()
    assert frechet_distance(x, 3 * x) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_gaussians_on_a_line_is_its_closed_form():
    """(mu1 - mu2)^2 + (sigma1 - sigma2)^2."""
    values = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    spread = float(values.std())
    assert frechet_distance(values * 3 + 5, values + 1) == pytest.approx(16 + (2 * spread) ** 2)


def test_it_is_what_scipy_makes_of_the_definition():
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    one = torch.randn(50, 6, generator=generator, dtype=torch.float64) @ mix[0]
    other = torch.randn(80, 6, generator=generator, dtype=torch.float64) @ mix[1] + 1
    (mu1, c1), (mu2, c2) = ((x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (one, other))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_it_holds_for_fewer_images_than_numbers_and_is_zero_for_the_same_set():
    few = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(few, few.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 2) == pytest.approx(300 * 4, rel=1e-6)


@pytest.mark.parametrize(
    ("images", "others", "why"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "at least two images a set; got 1 and 5"),
        (torch.zeros(5, 3), torch.zeros(5, 4), r"of one width; got \(5, 3\) and \(5, 4\)"),
    ],
)
def test_sets_that_have_no_frechet_distance_are_refused(images, others, why):
    with pytest.raises(ValueError, match=why):
        frechet_distance(images, others)
