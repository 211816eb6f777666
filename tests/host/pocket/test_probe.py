"""The probe: what it reads from drawings it has not seen, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from concept_sliders.pocket.measuring.probe import COLUMNS, NUMBERS, WEIGHTS, Readings, load_probe
from concept_sliders.pocket.training.probe import blurred, held_out_figures
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import CONTINUOUS, DISCRETE, STYLES, Portrait, portraits
from concept_sliders.pocket.world.unnamed import Unnamed
from safetensors import safe_open

R2_BOUND, BROW_BOUND = 0.965, 0.78  # brows are often behind glasses or under a hat
ACCURACY_BOUND = 0.99


@pytest.fixture(scope="module")
def probe():
    return load_probe()


def pictures_of(people: list[Portrait]) -> torch.Tensor:
    """(B, 128, 128, 3) in [0, 1]."""
    return torch.from_numpy(np.stack([draw(p) for p in people])).float() / 255


def check_bounds(figures: dict[str, float]) -> None:
    assert set(figures) == {*NUMBERS, *DISCRETE}
    bounds = dict.fromkeys(CONTINUOUS, R2_BOUND) | dict.fromkeys(DISCRETE, ACCURACY_BOUND) | {"brow": BROW_BOUND}
    assert {name: figure for name, figure in figures.items() if figure < bounds[name]} == {}


def test_it_reads_drawings_it_has_not_seen(probe):
    people = portraits(512, seed=3)
    numbers = torch.tensor(np.stack([[*p.numbers(), Unnamed.of(p.seed).brow] for p in people]))
    check_bounds(held_out_figures(probe.read(pictures_of(people)), numbers))


def test_the_file_says_what_it_reached_and_is_small():
    assert WEIGHTS.stat().st_size < 1_000_000
    with safe_open(str(WEIGHTS), framework="pt") as file:
        notes = file.metadata()
    check_bounds(json.loads(notes["held_out"]))


def test_readings_are_numbers_and_probabilities(probe):
    readings = probe.read(pictures_of(portraits(5, seed=1)))
    assert len(readings) == 5
    assert all(readings[name].shape == (5,) for name in COLUMNS)
    assert readings.values.min() >= 0 and readings.values.max() <= 1
    assert readings["style"].shape == (5, 3)
    torch.testing.assert_close(readings["style"].sum(1), torch.ones(5))
    assert torch.equal(readings["style"][:, STYLES.index("pastel")], readings["pastel"])


def test_reading_is_the_same_each_time_and_in_any_company(probe):
    images = torch.rand(130, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    together = probe.read(images).values
    assert torch.equal(together, probe.read(images).values)
    torch.testing.assert_close(together[-1:], probe.read(images[-1:]).values, atol=1e-4, rtol=0)


def test_larger_pictures_are_read_alike(probe):
    images = pictures_of(portraits(16, seed=6))
    larger = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (probe.read(images).values - probe.read(larger).values).abs().mean() < 0.03


def test_soft_and_noisy_pictures_are_read_alike(probe):
    people = portraits(64, seed=8)
    images = pictures_of(people).permute(0, 3, 1, 2)  # BHWC -> BCHW
    soft = blurred(images, sigma=0.7)
    soft += 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    shift = probe.read(images.permute(0, 2, 3, 1)).values - probe.read(soft.permute(0, 2, 3, 1)).values
    assert shift.abs().mean() < 0.03


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 3, 64, 64), (1, 64, 64, 4)])
def test_other_shapes_are_refused(probe, shape):
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\), got"):
        probe.read(torch.zeros(shape))


def test_a_table_of_readings():
    readings = Readings(torch.tensor([[0.25] * len(COLUMNS), [0.75] * len(COLUMNS)]))
    assert readings.mean() == dict.fromkeys(COLUMNS, 0.5)
    assert "| age | 0.500 | 0.250 |" in readings.table().splitlines()
    with pytest.raises(KeyError, match="got 'weight'"):
        readings["weight"]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No probe at .*nothing\.safetensors: train one"):
        load_probe(tmp_path / "nothing.safetensors")
