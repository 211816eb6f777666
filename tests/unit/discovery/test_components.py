"""Principal components: against scikit-learn's and closed forms, and what cannot be decomposed."""

import pytest
import torch
from concept_sliders.discovery.components import (
    components_along,
    effective_rank,
    principal_components,
    proposed_count,
    without,
)
from sklearn.decomposition import PCA


def correlated(count=500, dimensions=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator)
    scales = torch.logspace(0, -2, dimensions)
    return torch.randn(count, dimensions, generator=generator) * scales @ mixing + 3.0


def test_components_are_those_of_scikit_learn():
    samples = correlated()
    reference = PCA(10, svd_solver="full").fit(samples.double().numpy())
    found = principal_components(samples, 10)
    cosines = (found.directions.double() * torch.from_numpy(reference.components_)).sum(1).abs()
    assert cosines.min() >= 0.999
    assert found.explained.numpy() == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
    assert found.deviations.square().numpy() == pytest.approx(reference.explained_variance_, rel=1e-4)
    assert found.mean.numpy() == pytest.approx(reference.mean_, rel=1e-4)


def test_fewer_samples_than_dimensions_have_the_same_components():
    samples = correlated(count=30, dimensions=200)
    reference = PCA(8, svd_solver="full").fit(samples.double().numpy())
    found = principal_components(samples, 8)
    assert (found.directions.double() * torch.from_numpy(reference.components_)).sum(1).abs().min() >= 0.999
    assert found.explained.numpy() == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
    assert len(principal_components(samples, 29)) == 29


def test_given_directions_are_measured_along():
    samples = correlated()
    own = principal_components(samples, 3)
    found = components_along(samples, 2 * own.directions)
    torch.testing.assert_close(found.directions, own.directions)
    torch.testing.assert_close(found.deviations, own.deviations, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.explained, own.explained, rtol=1e-4, atol=0)


def test_directions_are_orthonormal_widest_first_and_their_signs_do_not_depend_on_the_order_of_samples():
    samples = correlated()
    found, shuffled = (principal_components(s, 6) for s in (samples, samples.flip(0)))
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(6), atol=1e-5, rtol=0)
    assert (found.deviations.diff() <= 0).all()
    torch.testing.assert_close(found.directions, shuffled.directions, atol=1e-4, rtol=0)
    largest = found.directions.abs().argmax(1, keepdim=True)
    assert (found.directions.gather(1, largest) > 0).all()


def test_some_components_keep_their_figures():
    found = principal_components(correlated(), 6)
    some = found.chosen([0, 4])
    assert len(some) == 2 and torch.equal(some.directions, found.directions[[0, 4]])
    assert torch.equal(some.deviations, found.deviations[[0, 4]]) and torch.equal(
        some.explained, found.explained[[0, 4]]
    )


def test_equal_variances_count_one_by_one():
    assert effective_rank(torch.full((7,), 1 / 7)) == pytest.approx(7, rel=1e-5)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert proposed_count(torch.full((500,), 1 / 500)) == 64


def test_the_number_proposed_is_near_the_number_of_directions_that_vary():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(40, 5, generator=generator)).Q
    samples = torch.randn(2000, 5, generator=generator) @ basis.T + 0.01 * torch.randn(2000, 40, generator=generator)
    assert len(principal_components(samples)) in (5, 6)


@pytest.mark.parametrize(("samples", "count", "message"), [
    (torch.randn(5, 8), 5, "5 directions need more samples than that; got 5"),
    (torch.ones(50, 8), 0, "All samples have the same embedding"),
])  # fmt: skip
def test_what_cannot_be_decomposed_is_said(samples, count, message):
    with pytest.raises(ValueError, match=message):
        principal_components(samples, count)


def test_directions_of_a_low_rank_are_not_invented():
    line = torch.outer(torch.linspace(-1, 1, 50), torch.ones(8))
    assert len(principal_components(line, 4)) == 1


def test_what_is_taken_out_does_not_vary_any_more():
    samples, unwanted = correlated(), torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    left = without(samples, unwanted)
    assert (left @ unwanted.T).std(0).max() < 1e-3
    torch.testing.assert_close(without(left, unwanted), left, atol=1e-4, rtol=1e-4)
    kept = torch.linalg.qr(torch.cat([unwanted, torch.eye(24)]).T.double()).Q[:, 3:].float()  # across the unwanted
    torch.testing.assert_close(left @ kept, samples @ kept, atol=1e-3, rtol=1e-3)
