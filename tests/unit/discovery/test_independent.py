"""Independent components: sources that were mixed are found again, as scikit-learn's FastICA finds them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from concept_sliders.discovery.components import principal_components
from concept_sliders.discovery.independent import independent_components, rotation
from sklearn.decomposition import FastICA


def mixed(count=2000, noise=0.0):
    """Samples (count, 20) of four independent sources of unit variance, and what mixes them, (4, 20)."""
    generator = torch.Generator().manual_seed(3)
    flat = 12**0.5 * (torch.rand(count, 2, generator=generator) - 0.5)
    two_ways = 2.0 * torch.randint(2, (count, 1), generator=generator) - 1
    rare = torch.distributions.Exponential(1.0).icdf(torch.rand(count, 1, generator=generator)) - 1
    columns = torch.randn(4, 20, generator=generator)
    samples = torch.cat([flat, two_ways, rare], 1) @ columns + 0.5
    return samples + noise * torch.randn(count, 20, generator=generator), columns


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_each_direction_is_what_one_source_changes(noise):
    samples, columns = mixed(noise=noise)
    found = independent_components(samples, principal_components(samples, 4))
    cosines = (F.normalize(columns, dim=1) @ found.directions.T).abs()
    assert cosines.max(1).values.min() > 0.98
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3]
    lengths = columns.norm(dim=1)[cosines.argmax(0)]
    torch.testing.assert_close(found.deviations, lengths, rtol=0.06, atol=0)


def test_principal_components_mix_them():
    samples, columns = mixed()
    cosines = (F.normalize(columns, dim=1) @ principal_components(samples, 4).directions.T).abs()
    assert cosines.max(1).values.min() < 0.9


def test_they_are_those_of_scikit_learn():
    samples, _ = mixed()
    found = independent_components(samples, principal_components(samples, 4))
    reference = FastICA(4, fun="logcosh", whiten="unit-variance", tol=1e-8, max_iter=1000, random_state=0)
    reference.fit(samples.double().numpy())
    columns = F.normalize(torch.from_numpy(np.ascontiguousarray(reference.mixing_.T)).float(), dim=1)
    assert (columns @ found.directions.T).abs().max(1).values.min() > 0.999


def test_they_are_widest_first_share_the_variance_and_have_signs_of_their_own():
    samples, _ = mixed(noise=0.3)
    within = principal_components(samples, 6)
    found, shuffled = (independent_components(s, within) for s in (samples, samples.flip(0)))
    assert (found.deviations.diff() <= 0).all()
    assert float(found.explained.sum()) == pytest.approx(float(within.explained.sum()), rel=1e-5)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(found.directions, shuffled.directions, atol=1e-3, rtol=0)
    assert (found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_rotation_is_orthogonal_also_where_nothing_is_to_be_told_apart():
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = rotation(z)
    torch.testing.assert_close(turned @ turned.T, torch.eye(5, dtype=torch.float64))
