"""Prompts of an inversion: what is refused, entries for some images, and windows of one step each."""

import math

import pytest
import torch
from concept_sliders.inversion.prompts import percent_windows, select_images, single_entry


def flow(percent, shift=2.0):
    """percent_to_sigma as ComfyUI's flow models have it."""
    t = min(1.0, max(0.0, 1 - percent))
    return shift * t / (1 + (shift - 1) * t)


def table(percent):
    """The same of a model with a table of sigmas: no end at the top, and a gap above 0."""
    return 1e9 if percent <= 0 else 0.0 if percent >= 1 else 0.03 * math.exp(6.2 * (1 - percent))


@pytest.mark.parametrize("percent_to_sigma", [flow, table])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_exactly_its_own_window_is_active_at_each_level(percent_to_sigma, steps):
    sigmas = [percent_to_sigma(max(i / steps, 1e-9)) for i in range(steps)] + [0.0]
    found = percent_windows(sigmas, percent_to_sigma)
    assert found[0][0] == 0 and found[-1][1] == 1
    for level, sigma in enumerate(sigmas[:-1]):
        active = [percent_to_sigma(end) <= sigma <= percent_to_sigma(start) for start, end in found]
        assert [i for i, is_active in enumerate(active) if is_active] == [level]


def test_levels_that_do_not_fall_or_are_all_but_the_same_are_refused():
    with pytest.raises(ValueError, match="do not fall at every step"):
        percent_windows([1.0, 0.5, 0.5, 0.0], flow)
    with pytest.raises(ValueError, match="cannot be told from its neighbours"):
        percent_windows([3.0, 2.0, 0.5, 0.0], flow)  # the model's levels end at 1


def prompt(batch_size=1, **options):
    return [[torch.randn(batch_size, 2, 3), options]]


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (prompt() * 2, "must be one prompt; got 2 combined"),
        ([], "must be one prompt; got 0"),
        (prompt(mask=torch.ones(1)), "positive has mask"),
        (prompt(area=(1, 1, 0, 0), start_percent=0.2), "positive has area, start_percent"),
        (prompt(control=object()), "positive has control"),
        (prompt(unclip_conditioning=[{}]), "positive has unclip_conditioning"),
        ([[torch.full((1, 2, 3), math.nan), {}]], "positive holds numbers that are not finite"),
        ([[None, {}]], "holds no encoded prompt"),
    ],
)
def test_prompts_that_are_more_than_words_are_refused(conditioning, message):
    with pytest.raises(ValueError, match=message):
        single_entry(conditioning, "positive")


def test_a_prompt_for_each_image_is_indexed():
    conditioning = prompt(3, pooled_output=torch.arange(3.0)[:, None], width=64, shared=torch.zeros(1, 3))
    ((encoding, options),) = select_images(conditioning, torch.tensor([2, 0, 2]), 3)
    assert torch.equal(encoding, conditioning[0][0][[2, 0, 2]])
    assert options["pooled_output"].flatten().tolist() == [2, 0, 2]
    assert options["width"] == 64 and options["shared"].shape == (1, 3)
    ((same, _),) = select_images(prompt(1), torch.tensor([0, 0]), 1)
    assert same.shape[0] == 1
