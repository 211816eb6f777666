"""Sweep values from text, and the latent that carries the same noise in its batch entries."""

import pytest
import torch
from concept_sliders.sliders import sweep


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("-3, -2, -1, 0, 1, 2, 3", [-3, -2, -1, 0, 1, 2, 3]),
        ("-3:3:7", [-3, -2, -1, 0, 1, 2, 3]),
        (" 0.5 ", [0.5]),
        ("1 2,3 , 4", [1, 2, 3, 4]),
        ("2:-2:3", [2, 0, -2]),
        ("1e-1:1:2", [0.1, 1]),
        ("1:1:1", [1]),
    ],
)
def test_values(text, values):
    assert sweep.parse_values(text) == pytest.approx(values)


def test_the_ends_of_a_range_are_exact():
    values = sweep.parse_values("-3:3:7")
    assert (values[0], values[3], values[-1]) == (-3.0, 0.0, 3.0)


@pytest.mark.parametrize("text", ["a, b", "1:2", "1:2:3:4", "0:1:2.5", "0:1:-1", "1;2", "-3..3"])
def test_what_is_no_list_of_numbers_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match="separated by commas, or from:to:count") as raised:
        sweep.parse_values(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["", "  ", ",", "0:1:0", "0:1:65", "nan", "1, inf"])
def test_none_too_many_and_endless_values_are_refused(text):
    with pytest.raises(ValueError, match="1 to 64 finite values"):
        sweep.parse_values(text)


def test_every_latent_is_repeated_side_by_side_and_shares_its_noise():
    samples = torch.arange(2.0).view(2, 1, 1, 1)
    swept = sweep.swept_latent({"samples": samples}, 3)
    assert swept["samples"].flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert swept["batch_index"] == [0, 0, 0, 1, 1, 1]


def test_a_batch_index_that_is_there_is_kept():
    latent = {"samples": torch.zeros(2, 1, 1, 1), "batch_index": [4, 7]}
    assert sweep.swept_latent(latent, 2)["batch_index"] == [4, 4, 7, 7]


def test_masks_of_each_latent_go_along_and_others_stay():
    samples = torch.zeros(2, 1, 1, 1)
    each, shared = torch.arange(2.0).view(2, 1, 1), torch.ones(1, 1, 1)
    assert sweep.swept_latent({"samples": samples, "noise_mask": each}, 2)["noise_mask"].flatten().tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert sweep.swept_latent({"samples": samples, "noise_mask": shared}, 2)["noise_mask"] is shared


def test_the_latent_that_came_in_is_left_alone():
    latent = {"samples": torch.zeros(1, 4, 2, 2), "downscale_ratio_spacial": 4}
    swept = sweep.swept_latent(latent, 5)
    assert latent.keys() == {"samples", "downscale_ratio_spacial"}
    assert latent["samples"].shape == (1, 4, 2, 2)
    assert swept["downscale_ratio_spacial"] == 4
