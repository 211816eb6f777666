"""LPIPS against the package `lpips` on the same random networks, and what it refuses."""

from functools import cache

import pytest
import torch
from concept_sliders.evaluation.lpips import Lpips

lpips = pytest.importorskip("lpips", reason="dev.py installs it with the type checker")


@cache
def shared(name):
    """The package's LPIPS on a random network, and that network's weights as torchvision's file has them."""
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    weights = {f"features.{key.split('.', 1)[1]}": value for key, value in theirs.net.state_dict().items()}
    return theirs, weights


def images(seed, size=(64, 80), count=3):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_it_is_what_the_package_measures(name):
    theirs, weights = shared(name)
    one, other = images(1), images(2)
    ours = Lpips(weights)
    with torch.no_grad():
        expected = theirs(one.permute(0, 3, 1, 2), other.permute(0, 3, 1, 2), normalize=True).flatten()
    assert ours.name == name and expected.min() > 1e-3
    torch.testing.assert_close(ours(one, other), expected, rtol=1e-5, atol=1e-7)


def test_the_distance_of_an_image_to_itself_is_zero_and_batches_do_not_matter():
    ours = Lpips(shared("alex")[1])
    one, other = images(1, (32, 32), count=11), images(2, (32, 32), count=11)
    assert torch.equal(ours(one, one), torch.zeros(11))
    torch.testing.assert_close(ours(one, other)[9:], ours(one[9:], other[9:]))


def test_other_networks_and_sizes_are_refused():
    weights = shared("alex")[1]
    with pytest.raises(ValueError, match=r"AlexNet or VGG16.*got conv1.weight"):
        Lpips({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(ValueError, match=r"of 32 pixels a side or more; got \(3, 16, 64, 3\)"):
        Lpips(weights)(images(1, (16, 64)), images(2, (16, 64)))
    with pytest.raises(ValueError, match="images of one size"):
        Lpips(weights)(images(1), images(2, (64, 64)))
