"""The loss and the frozen trajectories against closed forms."""

import math

import pytest
import torch
from concept_sliders.comfy_host.predictor import classifier_free
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.training.concept import Concept
from concept_sliders.training.objectives import prediction_loss, textual_change, textual_target
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.rollout import roll_out
from concept_sliders.training.samples import Warnings
from concept_sliders.training.textual_samples import POOL, TextualSamples
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_target_is_equation_8_written_out():
    d_target, more, less = torch.randn(2, 3, 4), torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4)
    written = d_target.clone()
    for p in range(5):
        written += 2.5 * (more[p] - less[p]) / 5
    torch.testing.assert_close(textual_target(d_target, textual_change(more, less), 2.5), written)


def test_a_negative_eta_is_the_opposite_edit_entry_by_entry():
    d_target, more, less = torch.randn(2, 3), torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    both = textual_target(d_target, textual_change(more, less), torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(both[0] - d_target[0], (more - less)[0, 0])
    torch.testing.assert_close(both[1] - d_target[1], (less - more)[0, 1])


def test_the_loss_is_the_mean_square_also_for_half_precision():
    assert prediction_loss(torch.zeros(1, 4).half(), torch.full((1, 4), 300.0).half()).item() == 90_000.0


def test_a_mask_leaves_only_what_it_lets_through():
    d, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    target[..., 2:] = 5.0
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1.0
    assert prediction_loss(d, target, mask).item() == pytest.approx(1.0)
    assert prediction_loss(d, target, 0.5 * mask).item() == pytest.approx(1.0)


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

    device, dtype = torch.device("cpu"), torch.float32
    shifts = {"": 0.0, "p": 1.0, "p, a": 3.0, "p, b": 0.0, "m, a": 5.0, "l, a": 2.0, "m, b": 4.0, "l, b": 3.0}

    def __init__(self):
        self.asked = []
        self.layer = torch.nn.Linear(1, 1).requires_grad_(False)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        change = LowRank(torch.ones(1, 1), torch.full((1, 1), 0.5))
        self.bank = SliderHooks({self.layer: [(0, change)]})

    def acting(self, strengths):
        return self.bank.acting(strengths)

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        self.asked.append(tuple(prompts))
        with self.acting(strengths.flatten(0, 1)):
            by_slider = self.layer(torch.ones(len(prompts) * len(x), 1)).view(len(prompts), -1, 1)
        return torch.stack([torch.full_like(x, self.shifts[p]) + sigma for p in prompts]) + by_slider

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def scale_noise(self, sigma, noise):
        return noise * sigma


CONCEPT = Concept("p", "m", "l", ("a", "b"), eta=2.0)


def source(concepts=(CONCEPT,), seed=0, **changes):
    model, generator = Affine(), torch.Generator().manual_seed(seed)
    values = {
        "on_policy_rollouts": 0.0,
        "preserve_in_target": False,
        "phrases_per_sigma": 0,
        "rollout_steps": 10,
        "samples_per_rollout": 4,
    }
    recipe = TextualRecipe(concepts=concepts, **{**values, **changes})
    return model, generator, TextualSamples(model, model, recipe, (2, 3), generator)


def samples(count, **changes):
    model, _, stream = source(**changes)
    return model, [next(stream) for _ in range(count)]


def test_every_sample_has_the_target_of_its_sign():
    _model, met = samples(8)
    for sample in met:
        for entry in range(2):
            sign = float(sample.strengths[entry, 0])
            expected = 1.0 + float(sample.sigma) + sign * 2.0 * ((5 - 2) + (4 - 3)) / 2
            torch.testing.assert_close(sample.target[entry], torch.full((3,), expected))
    assert {float(s) for sample in met for s in sample.strengths.flatten()} == {1.0, -1.0}


def test_one_sided_training_stays_at_plus_one():
    _, met = samples(8, both_signs=False)
    assert {float(s) for sample in met for s in sample.strengths.flatten()} == {1.0}


def by_trajectory(met):
    """The samples of each of the trajectories in turn, told apart by who takes turns."""
    return [met[turn::POOL] for turn in range(POOL)]


def test_one_rollout_serves_many_samples_each_sigma_at_both_signs():
    model, _, stream = source(samples_per_rollout=20)
    first = [next(stream) for _ in range(POOL * 20)]  # all are full ones from here on, at the latest
    asked = len(model.asked)
    met = [next(stream) for _ in range(POOL * 20)]
    assert len(model.asked) - asked == POOL * 10  # trajectories of ten levels
    for earlier, later, kept in zip(by_trajectory(first), by_trajectory(met), (5, 10, 15, 20)):
        trajectory = (earlier + later)[kept : kept + 20]
        for half in (trajectory[:10], trajectory[10:]):
            assert len({float(sample.sigma) for sample in half}) == 10
        by_level = {float(sample.sigma): sample for sample in trajectory[:10]}
        for sample in trajectory[10:]:
            torch.testing.assert_close(sample.strengths, -by_level[float(sample.sigma)].strengths)


def test_samples_one_after_the_other_come_from_different_trajectories_that_end_apart():
    model, _, stream = source(rollout_steps=2, samples_per_rollout=8)
    asked = []
    for _ in range(POOL * 8):
        next(stream)
        asked.append(len(model.asked))
    began = [index for index, (before, after) in enumerate(zip([0, *asked], asked)) if after > before]
    assert began == [0, 1, 2, 3, 8, 17, 26]  # the pool filled, then one every eight samples or so


def test_everything_about_a_level_is_asked_in_one_batch_and_no_more_than_is_needed():
    model, (sample,) = samples(1, samples_per_rollout=1)
    questions = [len(prompts) for prompts in model.asked]
    level = round(10 * (1 - float(sample.sigma)))
    assert questions == [2] * level + [6]  # the guidance, then both ends with two phrases; no level after that
    assert all(prompts.count("p") == 1 for prompts in model.asked)


def test_concepts_are_met_in_proportion_to_their_weights():
    concepts = (Concept("p", "m, a", "l, a", eta=4.0, weight=3.0), Concept("", "m, b", "l, b", eta=4.0))
    _, met = samples(400, concepts=concepts, rollout_steps=2, samples_per_rollout=1)
    assert 0.65 < sum(sample.prompt == "p" for sample in met) / len(met) < 0.85
    for sample in met[:20]:
        change, base = (3.0, 1.0) if sample.prompt == "p" else (1.0, 0.0)
        sign = float(sample.strengths[0, 0])
        torch.testing.assert_close(
            sample.target[0], torch.full((3,), base + float(sample.sigma) + sign * 4.0 * change)
        )


def test_erasing_is_the_opposite_edit():
    _, met = samples(4, concepts=(Concept("p", "m, a", "l, a", eta=2.0, erase=True),), both_signs=False)
    for sample in met:
        torch.testing.assert_close(sample.target, torch.full((2, 3), 1.0 + float(sample.sigma) - 2.0 * 3.0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 25), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_source_goes_on_from_its_state_as_if_it_had_never_stopped(done, both_signs, own):
    chosen = {"on_policy_rollouts": own, "both_signs": both_signs, "samples_per_rollout": 7}
    _, generator, first = source(**chosen)
    for _ in range(done):
        next(first)
    kept, random = first.state(), generator.get_state()
    expected = [next(first) for _ in range(12)]
    _, other, second = source(seed=1, **chosen)
    second.restore(kept)
    other.set_state(random)
    for sample in expected:
        again = next(second)
        assert torch.equal(sample.x, again.x) and torch.equal(sample.target, again.target)
        assert sample.sigma == again.sigma and torch.equal(sample.strengths, again.strengths)


def test_only_the_chosen_part_of_sampling_is_trained_on():
    _, met = samples(12, start_percent=0.5)
    assert max(float(sample.sigma) for sample in met) <= 0.5 + 1e-6


class Tied(Affine):
    """What a prompt is answered depends on the image, too: d = shift + sigma + tie of the prompt * x."""

    ties = {"p": 0.7, "p, a": 0.2, "p, b": -0.6}

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        strengths = torch.zeros(len(prompts), len(x), 1) if strengths is None else strengths
        ties = torch.tensor([self.ties.get(prompt, 0.0) for prompt in prompts])
        return super().predict(x, sigma, prompts, layers, strengths) + ties.view(-1, 1, 1) * x


def one_rollout(**changes):
    """All samples of the first rollout, by a model whose answers are tied to the image, and what it was asked."""
    model, recipe = Tied(), {"rollout_steps": 10, "samples_per_rollout": 40, "phrases_per_sigma": 0, "guidance": 1.0}
    recipe = TextualRecipe(concepts=(CONCEPT,), both_signs=False, **recipe, **changes)
    stream = TextualSamples(model, model, recipe, (2, 3), torch.Generator().manual_seed(0))
    met = [next(stream) for _ in range(POOL * 9)][::POOL]
    return model, {float(sample.sigma): sample for sample in met}


def test_phrases_name_what_the_image_has_without_the_slider():
    """What the model adds to the mean of the phrases is what it adds on the twin."""
    _, bare = one_rollout(on_policy_rollouts=0.0)
    _, met = one_rollout(on_policy_rollouts=1.0)
    moved = 0.0
    for sigma in sorted(bare.keys() & met.keys(), reverse=True):
        x, twin = met[sigma].x, bare[sigma].x
        mean = (0.2 - 0.6) / 2
        expected = mean * (x - twin) + 0.7 * twin + 1.0 + sigma + 2.0 * ((5 - 2) + (4 - 3)) / 2
        torch.testing.assert_close(met[sigma].target, expected)
        moved = max(moved, float((x - twin).abs().max()))
    assert moved > 0.1  # the slider has changed it


def test_the_paper_takes_the_target_alone_and_so_does_a_bare_rollout():
    for changes in ({"preserve_in_target": False, "on_policy_rollouts": 1.0}, {"on_policy_rollouts": 0.0}):
        model, met = one_rollout(**changes)
        assert not any(prompt in ("p, a", "p, b") for prompts in model.asked for prompt in prompts)
        for sigma, sample in met.items():
            torch.testing.assert_close(sample.target, 0.7 * sample.x + 1.0 + sigma + 4.0)


def test_the_slider_acts_on_rollouts_where_it_is_trained():
    _, bare = one_rollout(on_policy_rollouts=0.0, start_percent=0.5)
    _, met = one_rollout(on_policy_rollouts=1.0, start_percent=0.5)
    first, *later = sorted(bare.keys() & met.keys(), reverse=True)
    assert first == pytest.approx(0.5) and torch.equal(met[first].x, bare[first].x)
    assert all(not torch.allclose(met[sigma].x, bare[sigma].x) for sigma in later)


def test_phrases_take_turns_where_not_all_are_asked_about():
    model, met = samples(40, phrases_per_sigma=1, samples_per_rollout=40)
    asked = [prompts[2:] for prompts in model.asked if len(prompts) > 2]
    by_phrase = [("m, a", "l, a"), ("m, b", "l, b")]
    assert [set(pair) for pair in zip(asked[::2], asked[1::2])] == [set(by_phrase)] * (len(asked) // 2)
    assert len(asked) == 40 and len(set(zip(asked[::2], asked[1::2]))) == 2  # either comes first
    for sample in met:
        sigma, sign = float(sample.sigma), float(sample.strengths[0, 0])
        expected = {round(1.0 + sigma + sign * 2.0 * change, 4) for change in (5 - 2, 4 - 3)}
        assert round(float(sample.target[0, 0]), 4) in expected


def test_some_of_many_phrases_are_asked_about_at_once():
    model = Affine()
    three = Concept("p", "m", "l", ("a", "b", "c"), eta=4.0)
    phrased = [f"{prompt}{phrase}" for prompt in "pml" for phrase in ("", ", a", ", b", ", c")]
    model.shifts = {prompt: float(prompt.startswith("m")) for prompt in ("", *phrased)}
    recipe = TextualRecipe(
        concepts=(three,), phrases_per_sigma=2, rollout_steps=60, samples_per_rollout=240, on_policy_rollouts=0.0
    )
    next(TextualSamples(model, model, recipe, (2, 3), torch.Generator().manual_seed(0)))
    asked = [[prompt[-1] for prompt in prompts[2:4]] for prompts in model.asked if len(prompts) > 2]
    assert all(len(set(phrases)) == 2 for phrases in asked) and len(asked) >= 3
    met = [phrase for phrases in asked for phrase in phrases]
    assert len(met) == 120 and all(abs(met.count(phrase) - 40) <= 3 for phrase in "abc")


def test_own_rollouts_carry_the_slider_along():
    """Batch entries go where their sign takes them, and are asked about there without the slider."""
    _, bare = samples(4)
    _, own = samples(4, on_policy_rollouts=1.0)
    for sample, other in zip(own, bare, strict=True):
        assert sample.sigma == other.sigma
        gone = 1.0 - float(sample.sigma)  # of the way from sigma 1: every step adds -0.5 sign per unit of sigma
        torch.testing.assert_close(sample.x - other.x, -0.5 * gone * sample.strengths.expand(-1, 3))
        sign = float(sample.strengths[0, 0])
        torch.testing.assert_close(sample.target[0], torch.full((3,), 1.0 + float(sample.sigma) + sign * 4.0))


def test_gradients_are_the_differences_of_the_loss():
    """Through two layers with a slider on each, against central differences in double precision."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 5).double(), torch.nn.Linear(5, 2).double()]
    changes = [
        LowRank(*(torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((2, i), (o, 2))))
        for i, o in ((3, 5), (5, 2))
    ]
    bank = SliderHooks({layer: [(0, change)] for layer, change in zip(layers, changes)})
    x, target = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    strengths, mask = torch.tensor([[1.0], [-1.0], [0.5], [0.0]]), torch.tensor([[1.0], [1.0], [0.0], [0.5]])

    def loss():
        with bank.acting(strengths):
            y = layers[1](torch.tanh(layers[0](x)))
        weights = mask.double().expand_as(y)  # the objective itself works in single precision
        return ((y - target) ** 2 * weights).sum() / weights.sum()

    value = loss()
    value.backward()
    with bank.acting(strengths):
        y = layers[1](torch.tanh(layers[0](x)))
    assert prediction_loss(y, target, mask).item() == pytest.approx(value.item(), rel=1e-5)
    for change in changes:
        for parameter in (change.down, change.up):
            for index in range(parameter.numel()):
                differences = []
                for step in (1e-5, -1e-5):
                    with torch.no_grad():
                        parameter.view(-1)[index] += step
                        differences.append(loss().item())
                        parameter.view(-1)[index] -= step
                written = (differences[0] - differences[1]) / 2e-5
                assert parameter.grad.view(-1)[index].item() == pytest.approx(written, rel=1e-5, abs=1e-8)


class HardlyTold(Affine):
    """A model of half precision whose answers to both ends differ by `truth`, and that rounds anew at every call."""

    dtype = torch.bfloat16

    def __init__(self, truth, rounding):
        super().__init__()
        self.truth, self.rounding = truth, rounding

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        self.asked.append(tuple(prompts))
        noise = torch.randn(len(prompts), *x.shape, generator=torch.Generator().manual_seed(len(self.asked)))
        ends = torch.tensor([{"m": 0.5, "l": -0.5}.get(prompt, 0.0) for prompt in prompts])
        answers = 1.0 + self.truth * ends.view(-1, *(1 for _ in x.shape))
        return answers + self.rounding * noise


def first_sample(truth, rounding):
    model, warnings = HardlyTold(truth, rounding), Warnings()
    concepts = (Concept("p", "m", "l", eta=4.0),)
    recipe = TextualRecipe(concepts=concepts, rollout_steps=4, samples_per_rollout=4 * POOL, guidance=1.0)
    next(TextualSamples(model, model, recipe, (2, 64), torch.Generator().manual_seed(0), warnings))
    return warnings


@pytest.mark.parametrize("rounding", [0.0, 1e-2])
def test_ends_that_the_model_answers_alike_are_refused_however_it_rounds(rounding):
    with pytest.raises(ValueError, match=r"The model answers 'm' and 'l' alike.*nothing to learn"):
        first_sample(0.0, rounding)


@pytest.mark.parametrize(
    ("truth", "rounding", "said"),
    [
        (1e-3, 0.0, "differ by 0.001 of their size."),
        (1e-2, 1.5e-2, "is rounding."),
        (1e-2, 1e-3, ""),
        (0.2, 1e-2, ""),
    ],
)
def test_ends_that_the_model_hardly_tells_apart_are_warned_of(truth, rounding, said):
    warnings = first_sample(truth, rounding)
    assert all(said in each for each in warnings) and bool(warnings) == bool(said), warnings
