"""What a slider has reached, against what a toy slider is known to do, and what it is measured on."""

import pytest
import torch
from concept_sliders.training.concept import Concept
from concept_sliders.training.reached import reached, told_reached
from concept_sliders.training.recipe import TextualRecipe, VisualRecipe
from concept_sliders.training.samples import Sample
from concept_sliders.training.textual_samples import TextualSamples
from concept_sliders.training.visual_samples import LatentSet, VisualSamples


class Turning:
    """d = x, and with the slider at s: x + s (along, beside), of latents of two numbers."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, along=0.0, beside=0.0):
        self.change = torch.tensor([along, beside])

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        d = x.expand(len(prompts), *x.shape)
        return d if layers is None else d + strengths * self.change

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def scale_noise(self, sigma, noise, latents=None):
        return sigma * noise + (0.0 if latents is None else (1 - sigma) * latents)


def sample(strength, x, asked, mask=None):
    strengths = torch.full((len(x), 1), strength)
    return Sample(x, torch.tensor(0.5), x + torch.tensor(asked), strengths, "p", mask)


def test_the_part_lies_along_what_was_asked_and_the_rest_at_right_angles():
    slider = Turning(along=0.6, beside=0.4)
    asked = [sample(1.0, torch.randn(3, 2), (2.0, 0.0)), sample(-1.0, torch.randn(1, 2), (-1.0, 0.0))]
    found = reached(slider, slider, asked)
    assert found == pytest.approx({"part +1": 0.3, "beside +1": 0.2, "part -1": 0.6, "beside -1": 0.4}, rel=1e-4)
    assert told_reached(found) == (
        "reached 30% of the asked change at +1, 20% beside it; 60% of the asked change at -1, 40% beside it"
    )


def test_a_slider_that_turns_one_way_only_is_seen():
    slider = Turning(along=1.0)
    asked = [sample(1.0, torch.randn(1, 2), (1.0, 0.0)), sample(-1.0, torch.randn(1, 2), (1.0, 0.0))]
    found = reached(slider, slider, asked)
    assert found["part +1"] == pytest.approx(1.0, rel=1e-4) and found["part -1"] == pytest.approx(-1.0, rel=1e-4)


def test_samples_count_by_what_they_ask_for_and_where_their_masks_let_them():
    slider = Turning(along=1.0, beside=5.0)
    mask = torch.tensor([[1.0, 0.0]])
    asked = [sample(1.0, torch.zeros(1, 2), (1.0, 0.0), mask), sample(1.0, torch.zeros(1, 2), (3.0, 0.0), mask)]
    found = reached(slider, slider, asked)
    assert found["part +1"] == pytest.approx((1 * 1 + 1 * 3) / (1 + 9))


def test_without_samples_nothing_is_said():
    assert reached(Turning(), Turning(), []) == {} and told_reached({}) == ""


class Speaking(Turning):
    """d = x + what the prompt adds along the first number."""

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        words = torch.tensor([{"m": 1.0, "l": -1.0}.get(prompt[:1], 0.0) for prompt in prompts])
        return x + words.view(-1, 1, 1) * torch.tensor([1.0, 0.0])


def test_a_textual_slider_is_measured_at_sigmas_and_seeds_that_it_is_not_trained_on():
    concepts = (Concept("p", "m", "l", eta=2.0), Concept("q", "m", "l", eta=0.5, erase=True))
    recipe = TextualRecipe(concepts=concepts, rollout_steps=10, on_policy_rollouts=0.0, seed=3)
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = TextualSamples(Speaking(), Speaking(), recipe, (1, 2), generator)
    trained = [next(stream) for _ in range(200)]
    before = generator.get_state()
    held_out = stream.held_out()
    assert torch.equal(generator.get_state(), before)
    sigmas = {round(float(each.sigma), 5) for each in held_out}
    assert len(sigmas) == 10 and sigmas.isdisjoint(round(float(each.sigma), 5) for each in trained)
    met = torch.cat([each.x for each in trained])
    assert all(float((each.x - met[:, None]).abs().amax(-1).min()) > 1e-4 for each in held_out)
    assert [(a.prompt, float(a.strengths[0, 0])) for a in held_out[:2]] == [("p", 1.0), ("p", -1.0)]
    for each in held_out:
        eta = {"p": 2.0, "q": -0.5}[each.prompt] * float(each.strengths[0, 0])
        torch.testing.assert_close(each.target - each.x, torch.tensor([2.0 * eta, 0.0]).expand_as(each.x))
    again = stream.held_out()
    assert all(torch.equal(one.x, other.x) for one, other in zip(held_out, again, strict=True))


class Blurring(Turning):
    """A flow model whose estimate of the clean image lies half-way to the mean image, which is 0."""

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        return torch.stack([(x - self.estimate) / sigma for _ in prompts])


@pytest.mark.parametrize("method", ["noise", "ADDifT"])
def test_a_visual_slider_is_measured_by_what_the_model_misses_more_in_one_image_than_in_the_other(method):
    images = torch.tensor([[-1.0, 3.0], [1.0, 3.0], [4.0, 3.0]])
    strengths = (-1.0, 1.0, 2.0)
    model = Blurring()
    model.estimate = images / 2  # each is missed by half of itself, what they share alike
    one = LatentSet(images, strengths, "p")
    recipe = VisualRecipe(method=method, start_percent=0.2, end_percent=0.8)
    stream = VisualSamples(model, [one], recipe, torch.Generator().manual_seed(0))
    held_out = stream.held_out()
    assert {float(each.strengths[0, 0]) for each in held_out} == {1.0, -1.0}
    trained = {float(sigma) for sigma in stream._sigmas}
    assert all(float(each.sigma) not in trained and 0.2 < float(each.sigma) < 0.8 for each in held_out)
    for each in held_out:
        # the estimate D = x - sigma d is asked to move by e_j - e_i, with e = -image / 2, per unit of strength
        up = float(each.strengths[0, 0]) > 0
        steps = ((1, 0), (2, 1)) if up else ((0, 2),)
        gaps = [abs(strengths[i] - strengths[j]) for i, j in steps]
        moves = torch.stack([(images[i] - images[j]) / 2 / gap for (i, j), gap in zip(steps, gaps)])
        chosen = [i for i, _ in steps]
        frozen = (each.x - images[chosen] / 2) / each.sigma
        torch.testing.assert_close(-each.sigma * (each.target - frozen), moves, rtol=1e-3, atol=1e-3)
