"""Image sets, and the sizes they are brought to: near the wished area, never stretched, never enlarged."""

from math import sqrt

import pytest
import torch
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.training.pairs.image_sets import (
    ImagePairs,
    ImageSet,
    bucket,
    cover,
    kept,
    pairs_from_batches,
    prepare,
)
from hypothesis import example, given
from hypothesis import strategies as st

PIXELS, SIDES = st.integers(64, 3000), st.integers(256, 2048)


def image(height=64, width=64, value=0.5):
    return torch.full((height, width, 3), value)


def pair(height=64, width=64, **more):
    return ImageSet((image(height, width, 0.2), image(height, width, 0.8)), (-1.0, 1.0), **more)


def drawn(person):
    return torch.tensor(draw(person)).float() / 255


@given(
    long=PIXELS, aspect=st.floats(0.25, 1.0), tall=st.booleans(), side=SIDES, step=st.sampled_from([8, 16, 32, 64])
)
@example(long=1500, aspect=2 / 3, tall=False, side=512, step=64)
@example(long=2600, aspect=0.25, tall=True, side=256, step=64)
def test_a_bucket_is_a_multiple_near_the_wished_area_that_loses_little(long, aspect, tall, side, step):
    short = max(64, round(long * aspect))
    size = height, width = (long, short) if tall else (short, long)
    target = bucket(size, side, step)
    assert target[0] % step == target[1] % step == 0 and min(target) >= step
    scale = max(target[0] / height, target[1] / width)
    assert scale <= 1  # never enlarged
    # Cropping takes one step at most, from one direction only.
    over = sorted((height * scale - target[0], width * scale - target[1]))
    assert over[0] == pytest.approx(0, abs=1e-6) and over[1] <= step
    assert kept(size, target) == pytest.approx(target[0] * target[1] / (height * width * scale * scale))
    # The area is the wished one, or the image's own, but for a step of the shorter side and the crop.
    shrink = min(1.0, side / sqrt(height * width))
    high, wide = shrink * height, shrink * width
    assert target[0] * target[1] <= 1.25 * high * wide
    least = max(min(high, wide) - step, step)
    assert target[0] * target[1] >= least * (least * max(high, wide) / min(high, wide) - step)


@given(height=PIXELS, width=PIXELS, side=SIDES)
def test_a_bucket_is_its_own_bucket_and_only_long_images_have_none(height, width, side):
    try:
        target = bucket((height, width), side)
    except ValueError as error:
        assert "too long" in str(error) and max(height, width) / min(height, width) > 2
    else:
        assert bucket(target, side) == target


@pytest.mark.parametrize(
    ("size", "side", "target"),
    [
        ((512, 512), 512, (512, 512)),
        ((2000, 2000), 512, (512, 512)),
        ((1000, 1500), 512, (384, 576)),  # 3:2 exactly
        ((1080, 1920), 512, (384, 704)),
        ((1920, 1080), 512, (704, 384)),
        ((500, 500), 512, (448, 448)),  # smaller than wished: its own size, rounded down
        ((64, 64), 512, (64, 64)),
        ((100, 100), 512, (64, 64)),
    ],
)
def test_buckets(size, side, target):
    assert bucket(size, side) == target


def test_what_is_smaller_than_a_step_is_refused_with_the_file():
    with pytest.raises(ValueError, match=r"less/anna.png: .*80 x 50 pixels is too small; the least is 64"):
        prepare(pair(50, 80, files=("less/anna.png", "more/anna.png")), 512)
    with pytest.raises(ValueError, match="3000 x 66 pixels is too long for a training size of 64"):
        bucket((66, 3000), 64)
    with pytest.raises(ValueError, match="at least one step of 64 pixels, got 32"):
        bucket((512, 512), 32)


def test_a_circle_stays_round():
    height, width = 300, 500
    y, x = torch.meshgrid(torch.arange(height) - 149.5, torch.arange(width) - 249.5, indexing="ij")
    disc = (x * x + y * y < 100 * 100).float()[..., None].expand(-1, -1, 3)
    prepared = prepare(ImageSet((disc, 1 - disc), (-1, 1)), 200, 64).images[0][..., 0]
    rows, columns = prepared.amax(1) > 0.5, prepared.amax(0) > 0.5
    assert abs(int(rows.sum()) - int(columns.sum())) <= 1
    for along in (rows, columns):  # and it stays in the middle
        at = along.nonzero()
        assert abs(float(at.float().mean()) - (len(along) - 1) / 2) <= 1


def test_the_mask_is_cropped_as_the_images_are():
    height, width = 200, 333
    region = torch.zeros(height, width)
    region[60:120, 100:250] = 1
    image = region[..., None].expand(-1, -1, 3)
    prepared = prepare(ImageSet((image, 1 - image), (-1, 1), mask=region), 128)
    assert prepared.mask.shape == prepared.size
    assert (prepared.mask - prepared.images[0][..., 0]).abs().mean() < 0.02
    assert float(prepared.mask.min()) >= 0 and float(prepared.mask.max()) <= 1


def test_an_image_that_fits_stays_bit_for_bit():
    one, other = (drawn(person) for person in portraits(2, seed=1))
    prepared = prepare(ImageSet((one, other), (-1, 1)), 128)
    assert torch.equal(prepared.images[0], one) and torch.equal(prepared.images[1], other)


def test_scaling_down_is_smoothed():
    stripes = torch.zeros(256, 256, 3)
    stripes[:, ::2] = 1
    assert (cover(stripes, (64, 64), "bicubic") - 0.5).abs().max() < 0.05


def test_batches_pair_up_by_place():
    less, more = torch.rand(3, 64, 64, 4), torch.rand(3, 64, 64, 3)
    pairs = pairs_from_batches(less, more, torch.ones(1, 64, 64), "an eye")
    assert len(pairs) == 3 and pairs.strengths == (-1.0, 1.0)
    for i, one in enumerate(pairs):
        assert torch.equal(one.images[0], less[i, ..., :3]) and torch.equal(one.images[1], more[i])
        assert one.prompt == "an eye" and one.mask.shape == (64, 64)


def test_one_pair_is_enough():
    assert len(pairs_from_batches(torch.rand(1, 64, 64, 3), torch.rand(1, 64, 64, 3))) == 1


@pytest.mark.parametrize(
    ("less", "more", "mask", "says"),
    [
        ((3, 64, 64, 3), (2, 64, 64, 3), None, "3 images of less, but 2 of more"),
        ((2, 64, 64, 3), (2, 64, 96, 3), None, r"strength -1 is 64 x 64 pixels, .*strength 1 is 96 x 64"),
        ((3, 64, 64, 3), (3, 64, 64, 3), (2, 64, 64), "2 masks for 3 pairs"),
        ((1, 64, 64, 3), (1, 64, 64, 3), (1, 32, 32), "mask is 32 x 32 pixels"),
        ((0, 64, 64, 3), (0, 64, 64, 3), None, "no image pairs"),
        ((1, 64, 64, 1), (1, 64, 64, 1), None, r"\(height, width, 3\), got \(64, 64, 1\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused(less, more, mask, says):
    with pytest.raises(ValueError, match=says):
        pairs_from_batches(torch.rand(less), torch.rand(more), None if mask is None else torch.ones(mask))


def test_a_black_mask_is_refused():
    with pytest.raises(ValueError, match="black everywhere"):
        pair(mask=torch.zeros(64, 64))


@pytest.mark.parametrize(
    ("images", "strengths", "says"),
    [
        ((image(),), (1.0,), "1 image; a pair takes two"),
        ((image(), image()), (1.0,), "2 images, but 1 strengths"),
        ((image(), image()), (1.0, 1.0), "same strength"),
        ((image(), image()), (-1.0, float("nan")), "finite"),
    ],
)
def test_sets_that_are_none_are_refused(images, strengths, says):
    with pytest.raises(ValueError, match=says):
        ImageSet(images, strengths)


def test_sizes_that_differ_are_told_with_both_files():
    with pytest.raises(ValueError, match=r"-1/a.png is 64 x 64 pixels, 1/a.jpg is 65 x 64"):
        ImageSet((image(), image(64, 65)), (-1, 1), files=("-1/a.png", "1/a.jpg"))


def test_strengths_scale_together():
    sets = (
        ImageSet((image(), image(), image()), (-20.0, 0.0, 10.0)),
        ImageSet((image(), image()), (-5.0, 5.0)),
    )
    pairs = ImagePairs(sets).scaled_to(2.0)
    assert pairs.strengths == (-2.0, -0.5, 0.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="above 0, got -1"):
        pairs.scaled_to(-1)
