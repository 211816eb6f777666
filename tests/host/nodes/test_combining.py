"""Combine Sliders: joining, orthogonal sliders, a budget, and what it says and refuses."""

import pytest
import torch
from concept_sliders.evaluation.crosstalk import Effects
from concept_sliders.evaluation.crosstalk_tables import as_json
from concept_sliders.nodes.combining import BY_EFFECT, BY_WEIGHTS
from concept_sliders.nodes.composing import CombineSliders
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.weight_products import weight_products
from concept_sliders.tests.support.reports import shown, warned


def slider(name, across, along=1.0):
    """Its change of a layer of two weights is (along, across)."""
    return Slider(name, {"a": LowRank(torch.tensor([[along, across]]), torch.ones(1, 1))})


AGE, GLASSES = Stack.of(slider("age", 0.0)), Stack.of(slider("glasses", 1.0), -2.0)


def combined(*stacks, **settings):
    out = CombineSliders.execute({f"sliders{n}": stack for n, stack in enumerate(stacks)}, **settings)
    return out.args[0], out


def effects(stack, matrix=((0.5, 0.2), (0.0, 0.4))):
    hashes = tuple(placed.slider.content_hash for placed in stack)
    names = tuple(placed.slider.name for placed in stack)
    return as_json(
        Effects(names, hashes, ("age", "glasses"), (0, 1), torch.tensor(matrix), torch.zeros(2, 2), 1.0, 8)
    )


def changes(stack):
    return [(placed.slider.layers["a"].up @ placed.slider.layers["a"].down)[0].tolist() for placed in stack]


def test_by_default_stacks_are_joined_and_nothing_else():
    stack, out = combined(AGE, None, GLASSES)
    assert stack == AGE + GLASSES and shown(out) == []


def test_by_weights_later_sliders_give_up_what_they_share():
    stack, out = combined(AGE, GLASSES, orthogonalise=BY_WEIGHTS)
    assert changes(stack) == [[1.0, 0.0], pytest.approx([0.0, 1.0])]
    assert [(p.slider.name, p.strength) for p in stack] == [("age", (1.0,)), ("glasses", (-2.0,))]
    assert shown(out)[1:] == [
        "age: itself; 100% of its own change is left",
        "glasses: itself, -1.00 of age; 71% of its own change is left",
    ]
    assert weight_products([placed.slider.layers for placed in stack]).gram[0, 1].abs() < 1e-6


def test_by_effect_each_leaves_alone_what_the_others_are_for():
    joined = AGE + GLASSES
    stack, out = combined(joined, orthogonalise=BY_EFFECT, effects=effects(joined))
    assert changes(stack) == [pytest.approx([0.5, -0.5]), [1.0, 1.0]]  # age less half of glasses
    assert shown(out)[1:] == ["age: itself, -0.50 of glasses", "glasses: itself"]


def test_effects_are_found_by_the_sliders_and_not_by_their_order():
    joined = AGE + GLASSES
    stack, _ = combined(GLASSES, AGE, orthogonalise=BY_EFFECT, effects=effects(joined))
    assert changes(stack) == [[1.0, 1.0], pytest.approx([0.5, -0.5])]


def test_a_budget_turns_all_strengths_down():
    stack, out = combined(AGE, Stack.of(slider("older", 0.0)), budget=1.5)
    assert [placed.strength[0] for placed in stack] == pytest.approx([0.75, 0.75])
    assert shown(out) == ["Over the budget of 1.5: all strengths times 0.75."]
    stack, out = combined(AGE, GLASSES, budget=3.0)
    assert stack == AGE + GLASSES and shown(out) == ["Within the budget of 3: the strengths stay."]
    assert shown(combined(AGE, Stack.of(slider("older", 0.0)).swept(0, [0.0, 3.0]), budget=1.0)[1]) == [
        "Over the budget of 1: all strengths times 0.75 to 1.00."
    ]


def test_the_budget_is_of_what_comes_of_orthogonalising():
    stack, _ = combined(AGE, Stack.of(slider("older", 1.0, 3.0)), orthogonalise=BY_WEIGHTS, budget=1.0)
    assert changes(stack)[1] == pytest.approx([0.0, 1.0])
    assert [placed.strength[0] for placed in stack] == pytest.approx([0.5**0.5] * 2)


def test_one_slider_has_nothing_to_share():
    stack, out = combined(AGE, orthogonalise=BY_WEIGHTS)
    assert stack == AGE and warned(out) == ["Orthogonalising takes at least two sliders; the stack stays as it is."]


@pytest.mark.parametrize(("stacks", "settings", "why"), [
    ((AGE, GLASSES), {"orthogonalise": BY_EFFECT}, "Connect the output effects of a Slider Report"),
    ((AGE, GLASSES), {"orthogonalise": BY_EFFECT, "effects": "{}"}, "not effects as Slider Report puts them out"),
    ((AGE, GLASSES), {"orthogonalise": BY_EFFECT, "effects": effects(AGE + AGE)}, "not measured of glasses"),
    ((AGE, AGE), {"orthogonalise": BY_WEIGHTS}, "Slider 2 of the stack is the sum of multiples"),
    ((AGE, GLASSES.gated(Gate(0.3))), {"orthogonalise": BY_WEIGHTS}, "act in different parts of sampling"),
    ((AGE, GLASSES), {"budget": -1.0}, "positive multiple"),
])  # fmt: skip
def test_what_cannot_be_combined_so_is_refused(stacks, settings, why):
    with pytest.raises(ValueError, match=why):
        combined(*stacks, **settings)
