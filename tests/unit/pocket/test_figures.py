"""Figures of a generative model against closed forms."""

import pytest
import torch
from concept_sliders.pocket.measuring.figures import (
    blurred_to,
    correlation,
    gradient_energy,
    patches,
    precision_and_recall,
    psnr,
    shifts,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_correlation_is_pearsons(generator):
    x, noise = torch.randn(2, 500, generator=generator)
    assert correlation(x, 3 * x - 2) == pytest.approx(1)
    assert correlation(x, -x) == pytest.approx(-1)
    expected = torch.corrcoef(torch.stack([x, x + noise]))[0, 1].item()
    assert correlation(x, x + noise) == pytest.approx(expected, abs=1e-6)


def test_an_error_of_a_tenth_is_20_decibels():
    assert psnr(torch.zeros(2, 4, 4, 3), torch.full((2, 4, 4, 3), 0.1)).tolist() == pytest.approx([20, 20])


def test_precision_falls_with_what_is_made_up_and_recall_with_what_is_missing(generator):
    real = torch.cat([torch.randn(200, 2, generator=generator), torch.randn(200, 2, generator=generator) + 40])
    half = torch.randn(400, 2, generator=generator)
    strange = torch.cat([half[:200], half[200:] - 60])
    precision, recall = precision_and_recall(real, half)
    assert precision > 0.95 and recall == pytest.approx(0.5, abs=0.05)
    assert precision_and_recall(real, strange)[0] == pytest.approx(0.5, abs=0.05)


def test_gradient_energy_of_a_ramp_is_the_square_of_its_step():
    ramp = torch.linspace(0, 0.9, 10).reshape(1, 1, 10, 1).expand(1, 10, 10, 3)
    assert gradient_energy(ramp) == pytest.approx(0.01)


def test_patches_hold_every_value_once():
    latents = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    cut = patches(latents, side=4)
    assert cut.shape == (2 * 4, 3 * 16)
    assert torch.equal(cut.flatten().sort().values, latents.flatten())
    assert torch.equal(cut[1].reshape(3, 4, 4), latents[0, :, :4, 4:])


def test_pictures_are_blurred_to_what_is_asked(generator):
    images = torch.rand(3, 32, 32, 3, generator=generator)
    for decibels in (15.0, 25.0):
        assert psnr(images, blurred_to(images, decibels)).mean() == pytest.approx(decibels, abs=0.2)


def test_a_shift_is_found_again(generator):
    image = torch.rand(1, 40, 40, 3, generator=generator)
    moved = image.roll((3, -4), (1, 2))
    assert shifts(torch.cat([image, image]), torch.cat([image, moved])).tolist() == [0.0, 5.0]
