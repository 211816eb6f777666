"""Mixed sliders: orthogonal weights by Gram and Schmidt, effects that leave each other alone by least squares."""

import pytest
import torch
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.mixing import gram_schmidt, mixed, without_side_effects
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.weight_products import weight_products


def slider(name, seed, layers="ab", inner=(7,)) -> Slider:
    generator = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inner) - 1)
    found = {
        layer: LowRank(torch.randn(2, *inner, generator=generator), torch.randn(9, 2, *tail, generator=generator))
        for layer in layers
    }
    return Slider(name, found, SliderInfo(less=f"less {name}", more=f"more {name}"))


def dense(one: Slider) -> torch.Tensor:
    """Its change of layers a, b and c, flat."""
    parts = []
    for name in "abc":
        change = one.layers.get(name)
        parts.append(torch.zeros(63) if change is None else (change.up.flatten(1) @ change.down.flatten(1)).flatten())
    return torch.cat(parts).double()


def three() -> Stack:
    """The second and third lean on the first; the third has a layer of its own."""
    first, second, third = slider("x", 0), slider("y", 1), slider("z", 2, "bc")
    return sum((Stack.of(one, s) for one, s in ((first, 1.0), (second, -2.0), (third, 0.5))), Stack()).gated(
        Gate(0.2)
    )


def products(stack):
    return weight_products([placed.slider.layers for placed in stack])


def test_weights_become_orthogonal_in_the_order_of_the_stack():
    stack = three()
    out = mixed(stack, gram_schmidt(products(stack).gram))
    torch.testing.assert_close(products(out).cosines, torch.eye(3).double(), atol=1e-6, rtol=0)
    x, y, z = (dense(placed.slider) for placed in stack)
    y_left = y - (y @ x) / (x @ x) * x
    z_left = z - (z @ x) / (x @ x) * x - (z @ y_left) / (y_left @ y_left) * y_left
    for placed, expected in zip(out, (x, y_left, z_left)):
        torch.testing.assert_close(dense(placed.slider), expected, atol=1e-5, rtol=1e-5)


def test_they_stay_a_stack_of_the_same_sliders():
    stack = three()
    out = mixed(stack, gram_schmidt(products(stack).gram))
    assert [p.slider.name for p in out] == ["x", "y", "z"] and out[0] is stack[0]
    assert all(new.slider.info == old.slider.info for new, old in zip(out, stack))
    assert [(p.strength, p.gates, p.cond_or_uncond) for p in out] == [
        (p.strength, p.gates, p.cond_or_uncond) for p in stack
    ]
    assert {name: change.rank for name, change in out[2].slider.layers.items()} == {"a": 4, "b": 6, "c": 2}


def test_sliders_that_are_orthogonal_already_stay_as_they_are():
    x, y = torch.eye(3)[:1], torch.eye(3)[1:2]
    stack = Stack.of(Slider("x", {"a": LowRank(x, x.T)})) + Stack.of(Slider("y", {"a": LowRank(y, y.T)}))
    assert mixed(stack, gram_schmidt(products(stack).gram)) == stack


def test_a_slider_that_the_others_make_up_is_refused():
    one, two = slider("x", 0), slider("y", 1)
    both = mixed(Stack.of(one) + Stack.of(two), torch.tensor([[1.0, 0.0], [2.0, -1.0]]))[1].slider
    with pytest.raises(ValueError, match=r"Slider 3 of the stack is the sum of multiples"):
        gram_schmidt(products(Stack.of(one) + Stack.of(two) + Stack.of(both)).gram)


EFFECTS = torch.tensor([[0.40, 0.20, 0.10, 0.05], [0.15, -0.30, 0.02, 0.00], [0.03, 0.01, 0.50, 0.30]])


def test_effects_on_what_the_others_are_for_vanish():
    """Where there are as many columns as multiples; a column that nobody is for is left to itself."""
    mixture = without_side_effects(EFFECTS, torch.zeros(3, 4), (0, 1, 2))
    after = mixture @ EFFECTS.double()
    torch.testing.assert_close(after[:, :3], after[:, :3].diag().diag(), atol=1e-9, rtol=0)
    torch.testing.assert_close(mixture.diagonal(), torch.ones(3).double())


def test_two_sliders_for_one_thing_leave_the_third_alone():
    mixture = without_side_effects(EFFECTS, torch.zeros(3, 4), (0, 0, 2))
    after = mixture @ EFFECTS.double()
    assert after[0, 2].abs() < 1e-9 and after[1, 2].abs() < 1e-9 and after[2, 0].abs() < 1e-9
    assert after[0, 0] > 0.9 * EFFECTS[0, 0] and after[1, 0] > 0.9 * EFFECTS[1, 0]  # and keep what they are for


def test_an_effect_within_its_error_is_corrected_less():
    """The minimum of the expected square, by hand for two sliders: c = -e01 e11 / (e11^2 + error11^2)."""
    effects, errors = torch.tensor([[0.5, 0.2], [0.1, 0.3]]), torch.tensor([[0.1, 0.1], [0.1, 0.4]])
    mixture = without_side_effects(effects, errors, (0, 1))
    assert mixture[0, 1] == pytest.approx(-0.2 * 0.3 / (0.3**2 + 0.4**2))
    assert mixture[1, 0] == pytest.approx(-0.1 * 0.5 / (0.5**2 + 0.1**2))


def test_in_order_directions_become_orthogonal():
    """Of movements in a space of embeddings, by their inner products in parts of the own one."""
    moved = torch.tensor([[1.0, 0.0, 0.2], [0.5, 1.0, 0.0], [0.3, -0.4, 2.0]], dtype=torch.float64)
    products = moved @ moved.T
    mixture = without_side_effects(products / products.diagonal(), torch.zeros(3, 3), (0, 1, 2), in_order=True)
    after = mixture @ products @ mixture.T
    torch.testing.assert_close(after, after.diag().diag(), atol=1e-9, rtol=0)
    torch.testing.assert_close(mixture, gram_schmidt(products), atol=1e-9, rtol=0)


def test_one_slider_stays_alone():
    assert torch.equal(without_side_effects(EFFECTS[:1], torch.zeros(1, 4), (0,)), torch.eye(1).double())
    assert torch.equal(gram_schmidt(torch.ones(1, 1)), torch.eye(1).double())


def test_what_cannot_be_mixed_is_refused():
    x, y = slider("x", 0), slider("y", 1)
    gated = Stack.of(x) + Stack.of(y).gated(Gate(0.3))
    with pytest.raises(ValueError, match=r"'x' and 'y' act in different parts of sampling.*Gate Sliders"):
        mixed(gated, torch.eye(2))
    on_cond = Stack.of(x) + Stack.of(y).restricted_to("cond")
    with pytest.raises(ValueError, match="or of guidance"):
        mixed(on_cond, torch.eye(2))
    whole = Slider("whole", {"a": Adapter({"diff": torch.ones(9, 7)})})
    with pytest.raises(ValueError, match=r"'whole': its change of layer a is a difference. Only low-rank"):
        mixed(Stack.of(x) + Stack.of(whole), torch.eye(2))
