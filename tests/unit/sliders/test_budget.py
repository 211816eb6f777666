"""A budget for the total change of a stack: the norm of the sum, gates, sweeps, and what is refused."""

import pytest
import torch
from concept_sliders.sliders.budget import within_budget
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack


def slider(name, seed, prefix="", size=1.0) -> Slider:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 7, generator=generator), torch.randn(9, 2, generator=generator)
    return Slider(name, {f"{prefix}{layer}": LowRank(down, size * up) for layer in "ab"})


def total(stack, entry=0):
    """The norm of the sum of the dense changes at the strengths of a batch entry."""
    sums = {}
    for placed in stack:
        strength = placed.strength[entry % len(placed.strength)]
        for name, change in placed.slider.layers.items():
            sums[name] = sums.get(name, 0) + strength * (change.up.double() @ change.down.double())
    return sum(float(each.square().sum()) for each in sums.values()) ** 0.5


def stack_of(*strengths):
    return sum((Stack.of(slider(str(i), i), s) for i, s in enumerate(strengths)), Stack())


@pytest.mark.parametrize("budget", [0.5, 1.0, 1.2])
def test_the_total_is_what_the_budget_says(budget):
    stack = stack_of(1.0, -2.0, 0.5)
    largest = max(total(Stack((placed,))) for placed in stack)
    down, (factor,) = within_budget(stack, budget)
    assert total(stack) > budget * largest
    assert total(down) == pytest.approx(budget * largest, rel=1e-6) and factor == pytest.approx(
        total(down) / total(stack)
    )
    assert [p.strength[0] for p in down] == pytest.approx([factor * p.strength[0] for p in stack])
    assert [p.slider for p in down] == [p.slider for p in stack]


def test_a_stack_within_its_budget_stays_as_it_is():
    stack = stack_of(1.0, -2.0, 0.5)
    assert within_budget(stack, 10.0) == (stack, (1.0,))
    for idle in (stack_of(0.0, 0.0), Stack()):
        assert within_budget(idle, 1.0)[0] is idle


def test_sliders_that_cancel_are_not_turned_down():
    one = slider("a", 0)
    stack = Stack.of(one, 1.0) + Stack.of(one, -0.9)
    assert within_budget(stack, 1.0)[0] is stack
    _, (factor,) = within_budget(Stack.of(one, 1.0) + Stack.of(one, 0.5), 1.0)
    assert factor == pytest.approx(1 / 1.5)


def test_each_image_of_a_sweep_is_turned_down_by_itself():
    stack = (stack_of(1.0, 1.0)).swept(1, [0.0, 1.0, 4.0])
    down, factors = within_budget(stack, 0.9)
    largest = 4 * total(Stack.of(slider("1", 1)))
    assert factors[0] == factors[1] == 1.0 > factors[2]
    assert total(down, 2) == pytest.approx(0.9 * largest, rel=1e-6)
    assert [len(placed.strength) for placed in down] == [3, 3]


@pytest.mark.parametrize(("further", "other"), [("", "lora_te_"), ("lora_te_", "")])
def test_layers_of_the_model_or_of_the_text_encoders_decide_whichever_exceed_it_further(further, other):
    """In the one kind both sliders change the same, which is twice as much; in the other they differ."""
    same = slider("same", 0, further).layers
    one, two = (Slider(str(n), {**same, **slider("own", n, other).layers}) for n in (1, 2))
    _, (factor,) = within_budget(Stack.of(one) + Stack.of(two), 1.0)
    assert factor == pytest.approx(0.5)


def test_sliders_that_act_at_different_times_do_not_add_up():
    a, b = stack_of(1.0, 1.0)
    together, apart = Stack((a, b)), Stack((a,)).gated(Gate(0.0, 0.4)) + Stack((b,)).gated(Gate(0.4))
    on_sides = Stack((a,)).restricted_to("cond") + Stack((b,)).restricted_to("uncond")
    assert within_budget(together, 1.0)[1][0] < 0.95
    assert within_budget(apart, 1.0)[0] is apart and within_budget(on_sides, 1.0)[0] is on_sides
    ramped = Stack((a,)).gated(Gate(0.0, 0.5, 0.25)) + Stack((b,)).gated(Gate(0.4, 1.0))  # at 0.4 of a: 0.4
    expected = total(Stack.of(a.slider, 0.4) + Stack.of(b.slider)) / max(total(Stack((p,))) for p in (a, b))
    _, (factor,) = within_budget(ramped, 0.5)
    assert factor == pytest.approx(0.5 / max(expected, 1.0), rel=1e-5)


def test_text_encoders_have_a_budget_of_their_own():
    """Ten times as large there as in the model, which changes nothing about what the model's layers may."""
    text = [slider(str(i), 5 + i, "lora_te_", 10.0) for i in range(2)]
    _, (of_text,) = within_budget(Stack.of(text[0]) + Stack.of(text[1]), 1.0)
    both = stack_of(1.0, 1.0) + Stack.of(text[0]) + Stack.of(text[1])
    _, (of_model,) = within_budget(stack_of(1.0, 1.0), 1.0)
    assert of_text < 1 and within_budget(both, 1.0)[1] == pytest.approx((min(of_text, of_model),))
    gated = Stack.of(text[0]).gated(Gate(0.0, 0.4)) + Stack.of(text[1]).gated(Gate(0.4))
    assert within_budget(gated, 1.0)[1] == pytest.approx((of_text,))  # an encoding has no gates


def test_what_has_no_known_size_is_refused():
    loha = Slider("woven", {"a": Adapter({f"hada_w{i}_{end}": torch.ones(1, 1) for i in (1, 2) for end in "ab"})})
    with pytest.raises(ValueError, match=r"'woven': its change of layer a is a LoHa.*Set the budget to 0"):
        within_budget(stack_of(1.0) + Stack.of(loha), 1.0)
    with pytest.raises(ValueError, match="positive multiple"):
        within_budget(stack_of(1.0), -1.0)
