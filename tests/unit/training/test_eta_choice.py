"""The automatic eta, on models whose trajectories have closed forms."""

import math

import pytest
import torch
from concept_sliders.training.concept import Concept
from concept_sliders.training.eta_choice import ENOUGH, ETAS, SEEDS, Auditions, choose_eta, choose_for
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.textual_samples import TextualSamples


class Constant:
    """A model that predicts a vector of its own for each prompt, whatever the latent: d(x, sigma, c) = v(c)."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **vectors):
        self.vectors = {prompt.replace("_", ", "): torch.tensor(v) for prompt, v in vectors.items()}
        self.vectors[""] = torch.tensor([0.0, 1.0])
        self.asked = []

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        self.asked.append((len(x), tuple(prompts)))
        return torch.stack([self.vectors[prompt].expand_as(x) for prompt in prompts])

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def scale_noise(self, sigma, noise):
        return noise * sigma


def model():
    return Constant(t=(1.0, 0.0), m=(3.0, 0.0), l=(-1.0, 2.0))


CONCEPT = Concept("t", "m", "l")


def recipe(**settings):
    return TextualRecipe(**{"concepts": (CONCEPT,), "rollout_steps": 5, **settings})


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_an_audition_at_both_signs_spans_two_etas_and_the_prompts_their_guidance(guidance):
    # d does not depend on x: from -1 to +1 it differs by 2 eta (m - l), between the prompts by guidance (m - l)
    auditions = Auditions(model(), CONCEPT, recipe(guidance=guidance), (2,))
    for eta in (0.25, 1.0, 4.0):
        assert auditions.moved(eta) == pytest.approx(2 * eta / guidance, rel=1e-5)


def test_only_what_lies_along_the_difference_of_the_prompts_counts():
    both = Constant(t=(1.0, 0.0), m_a=(3.0, 5.0), l_a=(1.0, -5.0), m_b=(3.0, -5.0), l_b=(1.0, 5.0))
    concept = Concept("t", "m", "l", ("a", "b"))
    auditions = Auditions(both, concept, recipe(concepts=(concept,), guidance=1.0, phrases_per_sigma=0), (2,))
    assert auditions.moved(0.3) == pytest.approx(0.6, rel=1e-5)  # what both phrases agree on: (2, 0)


def test_phrases_take_turns_and_the_same_ones_in_every_run():
    names = {f"{end}_{phrase}": (float(end == "m"), 0.0) for end in "ml" for phrase in "abc"}
    asked = Constant(t=(0.0, 0.0), **names)
    concept = Concept("t", "m", "l", ("a", "b", "c"))
    auditions = Auditions(asked, concept, recipe(concepts=(concept,), guidance=1.0, phrases_per_sigma=2), (2,))
    more, less = asked.asked[:5], asked.asked[5 * SEEDS : 5 * SEEDS + 5]
    assert [prompts for _, prompts in more[:3]] == [("m, a", "m, b"), ("m, c", "m, a"), ("m, b", "m, c")]
    asked.asked.clear()
    auditions.moved(1.0)
    pairs = [(m[1], n[1]) for m, n in zip(more, less, strict=True)]
    assert [prompts for _, prompts in asked.asked] == SEEDS * [("t", *m, *n) for m, n in pairs]
    assert {entries for entries, _ in asked.asked} == {2}  # both signs of one seed


@pytest.mark.parametrize("slope", [0.09, 0.2, 0.61, 1.7, 3.0])
def test_the_smallest_eta_that_is_enough_is_chosen(slope):
    choice = choose_eta(lambda eta: slope * eta)
    assert choice.eta == min(eta for eta in ETAS if slope * eta >= ENOUGH) and choice.moved == slope * choice.eta


def test_a_large_eta_that_overshoots_is_never_reached():
    tried = []

    def moved(eta):
        tried.append(eta)
        return math.sin(eta)  # falls again beyond 1.57

    assert choose_eta(moved).eta == pytest.approx(2**-0.5) and max(tried) == 1.0


def test_where_none_is_enough_the_one_that_moves_furthest_is_taken_and_warned_of(caplog):
    assert choose_eta(lambda eta: 0.05 * eta).eta == ETAS[-1]
    assert choose_eta(lambda eta: 0.5 - abs(eta - 2.0)).eta == 2.0
    assert choose_eta(lambda eta: 0.3 if eta < 1 else math.nan).moved == 0.3  # a model that falls apart
    choose_for(model(), CONCEPT, recipe(guidance=300.0), (2,))
    assert "No eta up to 8 moves the image by 60%" in caplog.text


def samples(of, **settings):
    class Unused:
        def acting(self, strengths):
            raise AssertionError("the slider is not asked")

    given = recipe(guidance=3.0, on_policy_rollouts=0.0, **settings)
    return TextualSamples(of, Unused(), given, (1, 2), torch.Generator().manual_seed(0))


def test_training_uses_the_chosen_eta_says_so_and_a_resumed_run_does_not_choose_again():
    first = samples(model())
    sample = next(first)
    (eta,) = first.record()["etas"]
    assert eta == pytest.approx(1.0) and first.record()["audition_moved"] == [pytest.approx(2 / 3)]
    asked = sample.target[0] - torch.tensor([1.0, 0.0])
    torch.testing.assert_close(asked, sample.strengths[0, 0] * eta * torch.tensor([4.0, -2.0]))
    again = model()
    resumed = samples(again)
    resumed.restore(first.state())
    next(resumed)
    assert resumed.record() == first.record()
    assert all(entries == 1 for entries, _ in again.asked)  # rollouts alone


def test_an_eta_by_hand_asks_for_no_audition():
    by_hand = model()
    stream = samples(by_hand, concepts=(Concept("t", "m", "l", eta=2.0),))
    next(stream)
    assert stream.record() == {"etas": [2.0], "audition_moved": [0.0]}
    assert all(entries == 1 for entries, _ in by_hand.asked)
