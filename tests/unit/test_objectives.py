"""The loss and the frozen trajectories against closed forms."""

import math

import torch
from concept_sliders.sliders.bank import LayerBank
from concept_sliders.sliders.slider import LowRank
from concept_sliders.training.loop import textual_points
from concept_sliders.training.objectives import textual_loss, textual_target
from concept_sliders.training.recipe import Concept, Recipe
from concept_sliders.training.rollouts import classifier_free, roll_out


def test_the_target_is_equation_8_written_out():
    d_target, more, less = torch.randn(1, 2, 3, 4), torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4)
    written = d_target[0].clone()
    for p in range(5):
        written += 2.5 * (more[p] - less[p]) / 5
    torch.testing.assert_close(textual_target(d_target, more, less, 2.5), written)


def test_a_held_target_is_the_mean_over_its_phrases():
    d_target, more, less = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    written = (d_target[0] + d_target[1]) / 2 + ((more[0] - less[0]) + (more[1] - less[1])) / 2
    torch.testing.assert_close(textual_target(d_target, more, less, 1.0), written)


def test_a_negative_eta_is_the_opposite_edit_row_by_row():
    d_target, more, less = torch.randn(2, 3), torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    both = textual_target(d_target[None], more, less, torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(both[0] - d_target[0], (more - less)[0, 0])
    torch.testing.assert_close(both[1] - d_target[1], (less - more)[0, 1])


def test_the_loss_is_the_mean_square_also_for_half_precision():
    assert textual_loss(torch.zeros(4).half(), torch.full((4,), 300.0).half()).item() == 90_000.0


def test_guidance_of_1_is_the_prompt_and_0_the_empty_prompt():
    a, b = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(classifier_free(a, b, 1.0), a)
    torch.testing.assert_close(classifier_free(a, b, 0.0), b)


def test_a_rollout_follows_the_exact_solution():
    # d = x has the solution x(sigma) = x(1) exp(sigma - 1); Euler's error falls with the step
    sigmas = torch.linspace(1, 0, 2001, dtype=torch.float64)
    met = []
    trajectory = roll_out(
        lambda x, sigma: met.append(float(sigma)) or x,
        torch.ones(2, 1, dtype=torch.float64),
        sigmas,
        lambda sigma, noise: noise,
    )
    assert trajectory.x.shape == (2000, 2, 1) and met[0] == 1.0
    assert math.isclose(trajectory.x[-1, 0, 0], math.exp(sigmas[-2] - 1), rel_tol=1e-3)


class Affine:
    """A model whose every prediction is known: d = shift of the prompt + sigma, + 0.5 times the slider's strength."""

    device = torch.device("cpu")
    shifts = {"": 0.0, "p": 1.0, "p, a": 3.0, "p, b": 0.0, "m, a": 5.0, "l, a": 2.0, "m, b": 4.0, "l, b": 3.0}

    def __init__(self):
        self.asked = []
        self.layer = torch.nn.Linear(1, 1).requires_grad_(False)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        change = LowRank(torch.ones(1, 1), torch.full((1, 1), 0.5))
        self.bank = LayerBank({self.layer: [(0, change)]})

    def __call__(self, x, sigma, prompts):
        self.asked.append(tuple(prompts))
        by_slider = self.layer(torch.ones(len(prompts) * len(x), 1)).view(len(prompts), -1, 1)
        return torch.stack([torch.full_like(x, self.shifts[p]) + sigma for p in prompts]) + by_slider

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def scale_noise(self, sigma, noise):
        return noise * sigma


def points(count, **settings):
    model = Affine()
    settings = {"own_rollouts": 0.0, "held_target": False, **settings}
    recipe = Recipe(Concept("p", "m", "l", ("a", "b"), eta=2.0), rollout_steps=10, visits=4, **settings)
    stream = textual_points(model, model.bank, recipe, (2, 3), torch.Generator().manual_seed(0))
    return model, [next(stream) for _ in range(count)]


def test_every_point_carries_the_target_of_its_sign():
    model, met = points(8)
    for point in met:
        for row in range(2):
            sign = float(point.strengths[row, 0])
            expected = 1.0 + float(point.sigma) + sign * 2.0 * ((5 - 2) + (4 - 3)) / 2
            torch.testing.assert_close(point.target[row], torch.full((3,), expected))
    assert {float(s) for point in met for s in point.strengths.flatten()} == {1.0, -1.0}


def test_one_sided_training_stays_at_plus_one():
    _, met = points(8, both_signs=False)
    assert {float(s) for point in met for s in point.strengths.flatten()} == {1.0}


def test_one_rollout_serves_several_points_at_different_levels():
    model, met = points(8)
    assert model.asked.count(("p", "")) == 2 * 10  # two trajectories of ten levels for eight points
    assert len({float(point.sigma) for point in met[:4]}) == 4


def test_only_the_chosen_part_of_sampling_is_trained_on():
    _, met = points(12, noise_range=(0.5, 1.0))
    assert max(float(point.sigma) for point in met) <= 0.5 + 1e-6


def test_a_held_target_asks_with_every_phrase():
    model, met = points(2, held_target=True)
    assert model.asked[-1][:2] == ("p, a", "p, b")
    sign = float(met[0].strengths[0, 0])
    expected = (3.0 + 0.0) / 2 + float(met[0].sigma) + sign * 2.0 * ((5 - 2) + (4 - 3)) / 2
    torch.testing.assert_close(met[0].target[0], torch.full((3,), expected))


def test_own_rollouts_carry_the_slider_along():
    """Rows go where their sign takes them, and are asked about there without the slider."""
    _, bare = points(4)
    _, own = points(4, own_rollouts=1.0)
    for point, other in zip(own, bare, strict=True):
        assert point.sigma == other.sigma
        gone = 1.0 - float(point.sigma)  # of the way from sigma 1: every step adds -0.5 sign per unit of sigma
        torch.testing.assert_close(point.x - other.x, -0.5 * gone * point.strengths.expand(-1, 3))
        sign = float(point.strengths[0, 0])
        torch.testing.assert_close(point.target[0], torch.full((3,), 1.0 + float(point.sigma) + sign * 4.0))
