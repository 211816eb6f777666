"""Weights in eight bits: how far off they are, and what stays as it is."""

import pytest
import torch
from concept_sliders.pocket.models.eight_bits import packed, unpacked


def test_numbers_are_off_by_half_a_scale_at_most():
    weight = (
        torch.randn(64, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 2, 64)[:, None, None, None]
    )
    back = unpacked(packed({"w": weight}))["w"]
    largest = weight.flatten(1).abs().amax(1)[:, None, None, None]
    assert back.shape == weight.shape and ((back - weight).abs() <= largest / 253.9).all()
    torch.testing.assert_close(back.flatten(1).abs().amax(1), largest.flatten())


def test_they_take_a_quarter_of_single_precision():
    stored = packed({"w": torch.randn(256, 256)})
    assert sum(t.numel() * t.element_size() for t in stored.values()) < 256 * 256 * 1.02


def test_vectors_small_tensors_and_whole_numbers_stay_and_a_row_of_zeros_is_one():
    large = torch.zeros(128, 64)
    large[1:] = 1.0
    weights = {"bias": torch.tensor([0.5, -2.0]), "small": torch.ones(2, 3), "count": torch.tensor(7), "large": large}
    back = unpacked(packed(weights))
    assert all(torch.equal(back[name], weight.float()) for name, weight in weights.items())


def test_a_scale_that_belongs_to_nothing_is_a_weight_of_files_that_were_stored_otherwise():
    assert list(unpacked({"norm.scale": torch.ones(3)})) == ["norm.scale"]


def test_a_weight_that_is_called_like_a_scale_is_refused():
    with pytest.raises(ValueError, match=r"'a\.scale'"):
        packed({"a.scale": torch.ones(3)})
