"""Sliders, gates and stacks as values."""

import math

import pytest
import torch
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate, percent_of
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack, StackedSlider
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.floats(-5.0, 5.0)


def slider(name: str = "age") -> Slider:
    return Slider(name, {"lora_unet_mid": LowRank(torch.ones(2, 3), torch.ones(4, 2))})


def percent_to_sigma(percent: float) -> float:
    """A map like ComfyUI's: decreasing, with its ends beyond every sigma that is used."""
    if percent <= 0.0:
        return 999999999.9
    return 0.0 if percent >= 1.0 else 14.6 ** (1.0 - 2.0 * percent)


def stack_of(values: list[float]) -> Stack:
    return Stack(tuple(StackedSlider(slider(str(index)), (value,)) for index, value in enumerate(values)))


stacks = st.lists(VALUES, max_size=4).map(stack_of)
percents = st.integers(0, 1000).map(lambda n: n / 1000)
gates = (
    st.tuples(percents, percents, st.floats(0.0, 0.5))
    .filter(lambda t: t[0] < t[1])
    .map(lambda t: Gate(t[0], t[1], t[2] * (t[1] - t[0])))
)


@given(stacks, stacks, stacks)
def test_addition_is_concatenation(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert len(a + b) == len(a) + len(b)
    assert a + Stack() == a == Stack() + a


@given(stacks, st.floats(-2.0, 2.0), gates)
def test_operations_leave_their_stack_alone(a, factor, gate):
    before = a.strengths()
    a.scaled(factor), a.gated(gate), a + a
    assert torch.equal(a.strengths(), before)
    torch.testing.assert_close(a.scaled(factor).strengths(), before * factor)


@given(gates, gates, st.floats(0.01, 30.0))
def test_gates_multiply(one, two, sigma):
    both = Stack.of(slider(), 1.5).gated(one).gated(two)
    expected = 1.5 * one.factor_at(sigma, percent_to_sigma) * two.factor_at(sigma, percent_to_sigma)
    assert both.strengths(sigma, percent_to_sigma).item() == pytest.approx(expected, abs=1e-6)


@given(gates, percents)
def test_factor_on_sigmas_is_the_factor_on_percents(gate, percent):
    if min(abs(percent - gate.start), abs(percent - gate.end)) < 1e-3:
        return
    found = gate.factor_at(percent_to_sigma(percent), percent_to_sigma)
    assert found == pytest.approx(gate.factor(percent), abs=1e-4)
    assert 0.0 <= found <= 1.0


@given(st.floats(0.0, 1.0))
def test_percent_of_inverts(percent):
    assert percent_of(percent_to_sigma(percent), percent_to_sigma) == pytest.approx(percent, abs=1e-6)


@pytest.mark.parametrize(("percent", "most"), [(0.3, 60), (0.5, 6), (0.95, 4)])
def test_ramps_ask_for_a_sigma_once(percent, most):
    """Fifty sliders behind one ramp: the fraction of sampling is searched for once, and not at all off the ramps."""
    asked = []

    def counting(at: float) -> float:
        asked.append(at)
        return percent_to_sigma(at)

    stack = stack_of([1.0] * 50).gated(Gate(0.2, 0.9, 0.2))
    found = stack.strengths(percent_to_sigma(percent), counting)
    torch.testing.assert_close(found, torch.full((1, 50), Gate(0.2, 0.9, 0.2).factor(percent)))
    assert len(asked) <= most


def test_window_includes_its_first_sigma_and_not_its_last():
    gate = Gate(0.25, 0.75)
    low, high = percent_to_sigma(0.75), percent_to_sigma(0.25)
    inside, outside = (math.nextafter(low, 99.0), high), (low, math.nextafter(high, 99.0))
    assert [gate.factor_at(s, percent_to_sigma) for s in inside] == [1.0, 1.0]
    assert [gate.factor_at(s, percent_to_sigma) for s in outside] == [0.0, 0.0]


def test_window_to_the_end_includes_every_later_sigma():
    gate = Gate(0.25)
    assert [gate.factor_at(s, percent_to_sigma) for s in (percent_to_sigma(1.0), 0.0)] == [1.0, 1.0]


@given(percents, st.floats(0.01, 30.0), st.booleans())
def test_of_two_windows_that_meet_one_acts_everywhere(border, sigma, on_it):
    if not 0.0 < border < 1.0:
        return
    sigma = percent_to_sigma(border) if on_it else sigma
    factors = [gate.factor_at(sigma, percent_to_sigma) for gate in (Gate(0.0, border), Gate(border))]
    assert sorted(factors) == [0.0, 1.0]
    assert sorted(gate.factor(border) for gate in (Gate(0.0, border), Gate(border))) == [0.0, 1.0]


def test_ramp_rises_and_falls():
    both, rise = Gate(0.2, 0.8, 0.2), Gate(0.2, 1.0, 0.4)
    percents = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
    assert [both.factor(p) for p in percents] == pytest.approx([0, 0, 0.5, 1, 0.5, 0])
    assert [rise.factor(p) for p in percents] == pytest.approx([0, 0, 0.25, 0.75, 1, 1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.7, 0.3), "start 0.7 and end 0.3"),
        ((0.5, 0.5), "start 0.5 and end 0.5"),
        ((-0.1, 1.0), "start -0.1"),
        ((0.0, 1.5), "end 1.5"),
        ((float("nan"), 1.0), "start nan"),
        ((0.2, 0.4, 0.2), "between 0 and 0.1 .* got 0.2"),
        ((0.0, 1.0, -0.1), "got -0.1"),
    ],
)
def test_gates_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Gate(*values)


@given(st.lists(VALUES, min_size=1, max_size=5), st.integers(1, 4))
def test_sweep_entries_are_latent_by_latent(values, repeats):
    stack = (Stack.of(slider("a"), 0.25) + Stack.of(slider("b"), 9.0)).swept(1, values, repeats)
    strengths = stack.strengths()
    assert strengths.shape == (len(values) * repeats, 2) or len(values) * repeats == 1
    for entry in range(len(values) * repeats):
        assert strengths[entry].tolist() == pytest.approx([0.25, values[entry % len(values)]])


def test_sweep_of_a_position_that_is_not_there():
    stack = Stack.of(slider()) + Stack.of(slider())
    for position in (2, -1):
        with pytest.raises(ValueError, match=f"no slider {position + 1}.*has 2"):
            stack.swept(position, (0.0, 1.0))
    with pytest.raises(ValueError, match="0 values"):
        stack.swept(0, ())


def test_one_slider_is_picked_with_its_gates_and_a_strength_of_its_own():
    stack = Stack.of(slider("a"), 0.25) + Stack.of(slider("b"), 0.0, Gate(0.2))
    (picked,) = stack.picked(1, -1.5)
    assert (picked.slider, picked.strength, picked.gates) == (stack[1].slider, (-1.5,), (Gate(0.2),))
    for position in (2, -1):
        with pytest.raises(ValueError, match=f"no slider {position + 1} to pick.*has 2"):
            stack.picked(position, 1.0)


def test_two_sweeps_of_different_length():
    one = Stack.of(slider("age")).swept(0, (0.0, 1.0))
    two = Stack.of(slider("smile")).swept(0, (0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="'age' has strengths for 2 batch entries and slider 'smile' for 3"):
        one + two


def test_values_that_cannot_be():
    with pytest.raises(ValueError, match="finite"):
        Stack.of(slider(), float("nan"))
    with pytest.raises(ValueError, match=r"useful range.*1.0 to -1.0"):
        SliderInfo(useful_range=(1.0, -1.0))
    with pytest.raises(ValueError, match="'empty' has no layers"):
        Slider("empty", {})


@pytest.mark.parametrize(
    ("down", "up", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), r"down \(2, 3\) and up \(4, 3\)"),
        (torch.ones(3), torch.ones(4, 3), "2 dimensions"),
        (torch.ones(2, 3, 3, 3), torch.ones(4, 2, 3, 3), "up .out, rank. or .out, rank, 1"),
        (torch.ones(2, 3, dtype=torch.int32), torch.ones(4, 2), "int32"),
        (torch.ones(0, 3), torch.ones(4, 0), "empty"),
    ],
)
def test_low_rank_shapes(down, up, message):
    with pytest.raises(ValueError, match=message):
        LowRank(down, up)


def test_bad_numbers_are_named():
    up = torch.ones(4, 2)
    up[0, 0], up[1, 1] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="Slider 'age': Layer lora_unet_mid: 2 of the 8 numbers of its up"):
        Slider("age", {"lora_unet_mid": LowRank(torch.ones(2, 3), up)})


def test_facts_about_a_slider():
    both = Slider(
        "both",
        {
            "lora_unet_a": LowRank(torch.ones(2, 3), torch.ones(4, 2)),
            "lora_te_b": LowRank(torch.ones(5, 3).half(), torch.ones(4, 5).half()),
        },
    )
    assert both.rank == 5
    assert both.size_bytes == 4 * 14 + 2 * 35
    assert list(both.model_layers) == ["lora_unet_a"]
    assert list(both.text_layers) == ["lora_te_b"]


def test_cond_or_uncond():
    stack = Stack.of(slider("one"), 1.0)
    assert stack.restricted_to("both") is stack
    positive = stack.restricted_to("cond")
    assert (
        positive[0].cond_or_uncond
        == positive.restricted_to("both")[0].cond_or_uncond
        == positive.restricted_to("cond")[0].cond_or_uncond
        == "cond"
    )
    with pytest.raises(ValueError, match="acts on cond only"):
        positive.restricted_to("uncond")
    with pytest.raises(ValueError, match="both, cond, uncond"):
        stack.restricted_to("neither")


def test_the_states_that_gates_make_one_after_the_other():
    """Of what may be merged: ramps and sweeps are not, and no slider at all is no state."""
    one, two = slider("one"), slider("two")
    assert Stack.of(one).steady_states == 1
    assert Stack.of(one, gate=Gate(0.4)).steady_states == 1
    assert (Stack.of(one) + Stack.of(two, gate=Gate(0.4))).steady_states == 2
    assert (Stack.of(one, gate=Gate(0.2, 0.7)) + Stack.of(two, gate=Gate(0.4))).steady_states == 3
    assert (Stack.of(one) + Stack.of(two, gate=Gate(0.4, 1.0, 0.2))).steady_states == 1
    assert (Stack.of(one) + Stack.of(two, 0.0, gate=Gate(0.4))).steady_states == 1
    assert Stack().steady_states == 0
