"""The pocket world: people by seed, the correlations it names, pictures in which every attribute shows."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import nan
from statistics import NormalDist

import numpy as np
import pytest
import torch
from concept_sliders.pocket.world import pool
from concept_sliders.pocket.world import portrait as world
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import BINARY, CONTINUOUS, STYLES, Portrait, portraits
from concept_sliders.pocket.world.unnamed import Unnamed

PEOPLE = 4000


@pytest.fixture(scope="module")
def people() -> list[Portrait]:
    return portraits(PEOPLE, seed=5)


def column(people: list[Portrait], name: str) -> np.ndarray:
    return np.array([getattr(p, name) for p in people], dtype=float)


def scores(values: np.ndarray) -> np.ndarray:
    """The normals behind uniform values."""
    return np.array([NormalDist().inv_cdf(v) for v in values.clip(1e-9, 1 - 1e-9)])


def test_the_same_seed_gives_the_same_people_and_pictures():
    first, again = portraits(12, seed=7), portraits(12, seed=7)
    assert first == again
    assert all(np.array_equal(draw(a), draw(b)) for a, b in zip(first, again))
    assert portraits(5, seed=7) == first[:5]
    assert portraits(12, seed=8) != first


@pytest.mark.parametrize("name", CONTINUOUS)
def test_marginals_are_uniform(people, name):
    values = np.sort(column(people, name))
    assert np.abs(values - (np.arange(PEOPLE) + 0.5) / PEOPLE).max() < 0.03  # Kolmogorov-Smirnov


def test_hair_shade_goes_with_age_as_much_as_the_world_says(people):
    age, shade = (scores(column(people, name)) for name in ("age", "hair_shade"))
    assert np.corrcoef(age, shade)[0, 1] == pytest.approx(world.AGE_HAIR_SHADE_CORRELATION, abs=0.04)


def test_glasses_go_with_age_as_much_as_the_world_says(people):
    age, glasses = scores(column(people, "age")), column(people, "glasses") > 0.5
    share = world.GLASSES_SHARE
    # Of two normals with correlation rho, the mean of one over the other's upper tail is rho phi / share.
    density = NormalDist().pdf(NormalDist().inv_cdf(1 - share))
    assert age[glasses].mean() * share / density == pytest.approx(world.AGE_GLASSES_CORRELATION, abs=0.06)


def test_nothing_else_goes_together(people):
    names = [name for name in (*CONTINUOUS, *BINARY) if name not in ("hair_shade", "glasses")]
    table = np.corrcoef([column(people, name) for name in names])
    assert np.abs(table - np.eye(len(names))).max() < 0.07


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("glasses", world.GLASSES_SHARE),
        ("hat", world.HAT_SHARE),
        ("spoiled", world.SPOILED_SHARE),
        ("woman", 0.5),
    ],
)
def test_shares(people, name, share):
    assert column(people, name).mean() == pytest.approx(share, abs=0.03)


def test_styles_are_equally_common(people):
    counts = [sum(p.style == style for p in people) for style in STYLES]
    assert min(counts) > 0.3 * PEOPLE


def changed_pixels(one: Portrait, other: Portrait) -> int:
    """How many of 16,384 pixels differ by what an eye sees at a glance."""
    return int((np.abs(draw(one).astype(int) - draw(other)).max(-1) > 24).sum())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_number_shows_along_its_whole_range(name, style):
    person = Portrait(style=style, age=0.4)
    steps = [person.with_(**{name: value}) for value in (0.1, 0.5, 0.9)]
    for lower, upper in zip(steps, steps[1:]):
        assert changed_pixels(lower, upper) >= 60


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", BINARY)
def test_every_yes_or_no_shows(name, style):
    person = Portrait(style=style)
    assert changed_pixels(person.with_(**{name: False}), person.with_(**{name: True})) >= 400


def test_styles_differ():
    flat, ink, pastel = (Portrait(style=style) for style in STYLES)
    assert min(changed_pixels(flat, ink), changed_pixels(ink, pastel), changed_pixels(flat, pastel)) > 4000


def test_the_seed_changes_what_no_word_names():
    assert changed_pixels(Portrait(seed=1), Portrait(seed=2)) > 400


@pytest.mark.parametrize("value", [-0.01, 1.01, nan])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value}"):
        Portrait(**{name: value})


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="flat colour, ink sketch, pastel, got 'oil'"):
        Portrait(style="oil")


def test_numbers_are_the_attributes_in_order():
    numbers = Portrait(age=0.25, sky=0.75, hat=True, style="pastel").numbers()
    assert numbers.dtype == np.float32 and len(numbers) == len(CONTINUOUS) + len(BINARY) + 1
    assert numbers[CONTINUOUS.index("age")] == 0.25 and numbers[CONTINUOUS.index("sky")] == 0.75
    assert numbers[len(CONTINUOUS) + BINARY.index("hat")] == 1 and numbers[-1] == STYLES.index("pastel")


def test_a_pool_is_drawn_once_and_read_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 4)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", ThreadPoolExecutor)  # shares the smaller shard
    drawn = pool.drawn_pool(6, 3, tmp_path)
    pictures = drawn.pictures(range(6))
    assert len(drawn) == len(pictures) == 6 and pictures.shape[1:] == (3, 128, 128)
    for person, picture in zip(drawn.people, pictures):
        assert np.array_equal(draw(person), ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["portraits-3-0.npy", "portraits-3-1.npy"]

    monkeypatch.setattr(pool, "draw", lambda _: pytest.fail("drawn again"))
    again = pool.drawn_pool(6, 3, tmp_path)
    assert again.people == drawn.people and torch.equal(again.pictures(range(6)), pictures)


def test_a_pool_tells_the_brow_beside_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 4)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", ThreadPoolExecutor)
    drawn = pool.drawn_pool(4, 3, tmp_path)
    numbers = drawn.numbers()
    for person, row in zip(drawn.people, numbers):
        assert np.array_equal(row[:-1], person.numbers()) and row[-1] == np.float32(Unnamed.of(person.seed).brow)


def test_a_picture_is_128_by_128_bytes_and_the_same_each_time():
    for style in STYLES:
        person = Portrait(style=style, seed=3)
        picture = draw(person)
        assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, draw(person))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("change", [{"brow": 1.0}, {"gaze": (1.0, 0.0)}])
def test_what_no_caption_names_shows(change, style):
    person, usual = Portrait(style=style, eye_size=0.7), replace(Unnamed.of(0), brow=0.0, gaze=(-1.0, 0.0))
    low, high = (draw(person, unnamed).astype(int) for unnamed in (usual, replace(usual, **change)))
    assert (np.abs(low - high).max(-1) > 24).sum() >= 40


def test_what_is_newly_unnamed_leaves_the_rest_of_a_seed_as_it_was():
    rng = np.random.default_rng(11)
    x, y = rng.uniform(-5, 5), rng.uniform(-4, 4)
    assert (Unnamed.of(11).x, Unnamed.of(11).y) == (x, y)
