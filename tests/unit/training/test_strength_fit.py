"""How strong a trained slider is made, on models whose trajectories have closed forms."""

import pytest
import torch
from concept_sliders.training.strength_fit import ENOUGH, FACTORS, WEAK, Fit, fit_strength, told_fit, warn_fit
from concept_sliders.training.visual_fit import NoisyImages
from concept_sliders.training.visual_samples import LatentSet


class Pushed:
    """d(x, sigma, c) = v(c) - s push, whatever the latent: a slider of strength s moves what is denoised by it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, push, **vectors):
        self.push, self.vectors = torch.tensor(push), {"": torch.zeros(2), **vectors}

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        d = torch.stack([torch.as_tensor(self.vectors[prompt]).expand_as(x) for prompt in prompts])
        if layers is not None:
            d = d - strengths[..., 0].reshape(*d.shape[:2], *(1 for _ in x.shape[1:])) * self.push
        return d

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def scale_noise(self, sigma, noise, latents=None):
        return noise * sigma + (0 if latents is None else latents)


@pytest.mark.parametrize("slope", [0.05, 0.13, 0.2, 0.3, 0.6, 2.0])
def test_it_is_the_smallest_factor_that_moves_images_far_enough(slope):
    fit = fit_strength(lambda factor: slope * factor)
    enough = [factor for factor in FACTORS if slope * factor >= ENOUGH]
    assert fit == Fit(min(enough, default=max(FACTORS)), slope * fit.factor)


def test_one_that_turns_back_is_made_no_stronger_than_helps():
    fit = fit_strength(lambda factor: 0.4 - abs(factor - 2) * 0.1)
    assert fit == Fit(2.0, pytest.approx(0.4))


def test_one_that_hardly_moves_images_is_called_weak():
    assert not warn_fit(Fit(3.0, WEAK)) and not warn_fit(Fit(1.0, 0.5))
    assert "by 9% of what" in warn_fit(Fit(3.0, 0.09)) and "at 3 times" in warn_fit(Fit(3.0, 0.09))


def test_a_report_says_how_far_and_how_much_stronger():
    assert told_fit(Fit(1.0, 0.62)) == "from -1 to +1 it moves latents by 62% of what the images differ in"
    assert told_fit(Fit(1.4, 0.55)).endswith("of what the images differ in, made 1.4 times stronger for it")


@pytest.mark.parametrize("strengths", [(-1.0, 1.0), (-2.0, 2.0), (0.0, 1.0), (1.0, 0.0, -1.0)])
def test_from_images_the_way_is_what_they_differ_in_per_unit_of_strength(strengths):
    apart = torch.tensor([3.0, 0.0]).view(2, 1, 1)
    latents = torch.stack([strength * apart + 1.0 for strength in strengths]).expand(-1, 2, 4, 4)
    model = Pushed(torch.tensor([1.5, 7.0]).view(2, 1, 1).tolist(), p=torch.zeros(2, 1, 1))
    images = NoisyImages(model, [LatentSet(latents, strengths, "p")], seed=0)
    # 0.9 of sampling is left, and a push by s moves the latent by 0.9 s push; the way is 2 x 3, to either side
    assert images.moved(object(), 1.0) == pytest.approx(0.9 * 2 * 1.5 / 6, rel=1e-4)
    assert images.moved(object(), 2.0) == pytest.approx(2 * 0.9 * 2 * 1.5 / 6, rel=1e-4)


def test_from_images_it_begins_where_training_does_and_counts_what_the_mask_lets_through():
    latents = torch.stack([torch.full((2, 4, 4), value) for value in (-1.0, 1.0)])
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    push = torch.full((2, 4, 4), 1.0)
    push[:, :2] = 0.4  # the slider moves the upper half, which the mask lets through, less
    model = Pushed(push.tolist(), p=torch.zeros(2, 1, 1))
    whole, masked = (NoisyImages(model, [LatentSet(latents, (-1.0, 1.0), "p", m)], 0, first=5) for m in (None, mask))
    assert masked.moved(object(), 1.0) == pytest.approx(0.5 * 2 * 0.4 / 2, rel=1e-4)
    assert whole.moved(object(), 1.0) == pytest.approx(0.5 * 2 * 0.7 / 2, rel=1e-4)
