"""What directions turn out to do, their names, and which of them say the same."""

import pytest
import torch
from concept_sliders.discovery.names import names_of, trained_and_done
from concept_sliders.discovery.realised import distinct, mutual_cosine, realised


def test_figures_of_directions_that_do_what_they_should_and_of_one_that_does_another_s():
    components = torch.eye(4)[:3]
    changes = torch.tensor([[2.0, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 1.0, 0.1, 0]])
    found = realised(changes, components)
    assert found.own.tolist() == pytest.approx([1, 0.5**0.5, 0.1 / 1.01**0.5], abs=1e-6)
    assert found.own_is_highest.tolist() == [True, True, False]
    assert found.lengths.tolist() == pytest.approx([2, 0.5**0.5, 1.01**0.5])
    assert found.mutual == pytest.approx((0.5**0.5 / 1.01**0.5) / 3, abs=1e-6)


def test_a_single_direction_has_no_other():
    assert mutual_cosine(torch.ones(1, 4)) == 0


def test_doubles_and_opposites_are_left_out():
    changes = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-2.0, 0.1, 0], [0, 1, 1.0], [0.1, 3, 0]])
    assert distinct(changes) == [0, 1, 3]


def test_names_are_the_words_that_the_ends_move_towards():
    words = ["old", "young", "night", "noon"]
    shared = 5 * torch.ones(6)  # what all texts have in common
    texts = torch.stack([torch.eye(6)[0], -torch.eye(6)[0], torch.eye(6)[1], -torch.eye(6)[1]]) + shared
    changes = torch.tensor([[0.3, 0, 0, 0, 0, 0], [0.1, -2.0, 0, 0, 0, 0]])
    first, second = names_of(changes, texts, words, count=1)
    assert (first.less, first.more) == (("young",), ("old",))
    assert (second.less, second.more) == (("night",), ("noon",))


def test_a_name_is_of_the_direction_trained_as_much_as_of_what_a_few_images_show():
    age, glasses = torch.eye(4)[0], torch.eye(4)[1]
    texts, words = torch.stack([age, -age, glasses, -glasses]), ["old", "young", "glasses", "no glasses"]
    shown = 7 * (0.6 * age + 0.8 * glasses)  # the few people that were sampled get glasses
    (alone,), (both,) = (names_of(of[None], texts, words) for of in (shown, trained_and_done(2 * age, shown)))
    assert (alone.more[0], both.more[0], both.less[0]) == ("glasses", "old", "young")


def test_words_without_embeddings_are_refused():
    with pytest.raises(ValueError, match="got 2 words and 3 embeddings"):
        names_of(torch.ones(1, 4), torch.ones(3, 4), ["a", "b"])
