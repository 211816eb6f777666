"""Merging sliders: exact sums, and the best approximation of a rank."""

import pytest
import torch
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.merge_sliders import compressed, merge
from concept_sliders.sliders.slider import Slider
from hypothesis import given, settings
from hypothesis import strategies as st


def low_rank(rank, out=9, inner=(7,), seed=0, dtype=torch.float32) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inner) - 1)
    down, up = torch.randn(rank, *inner, generator=generator), torch.randn(out, rank, *tail, generator=generator)
    return LowRank(down.to(dtype), up.to(dtype))


def dense(change: LowRank) -> torch.Tensor:
    return change.up.flatten(1).double() @ change.down.flatten(1).double()


def slider(name="a", **layers) -> Slider:
    return Slider(name, layers)


shapes = st.sampled_from([(7,), (7, 1, 1), (3, 3, 3), (2, 3, 1, 2)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(-3, 3)), min_size=1, max_size=5), shapes)
def test_exact_is_the_sum(parts, inner):
    parts = [(rank, strength) for rank, strength in parts if abs(strength) > 1e-3] or [(1, 1.0)]
    sliders = [(slider(str(i), x=low_rank(rank, inner=inner, seed=i)), s) for i, (rank, s) in enumerate(parts)]
    merged = merge(sliders)
    expected = sum(s * dense(one.layers["x"]) for one, s in sliders)
    assert merged.error == 0.0
    assert merged.layers["x"].rank == sum(rank for rank, _ in parts)
    assert torch.allclose(dense(merged.layers["x"]), expected, atol=1e-4)
    assert merged.layers["x"].down.shape[1:] == inner


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 14), shapes)
def test_compression_is_the_best_there_is(first, second, rank, inner):
    """Against the singular values of the dense product (Eckart, Young, Mirsky)."""
    sliders = [
        (slider("a", x=low_rank(first, inner=inner)), 0.5),
        (slider("b", x=low_rank(second, inner=inner, seed=1)), -2.0),
    ]
    exact = dense(merge(sliders).layers["x"])
    merged = merge(sliders, rank)
    values = torch.linalg.svdvals(exact)
    best = (values[rank:].norm() / values.norm()).item()
    left_out = ((dense(merged.layers["x"]) - exact).norm() / exact.norm()).item()
    assert merged.layers["x"].rank <= min(rank, first + second)
    assert merged.error == pytest.approx(best, abs=1e-6)
    assert left_out == pytest.approx(best, abs=1e-5)


def test_errors_of_layers_add_up_as_one_change():
    layers = {f"l{i}": low_rank(6, seed=i) for i in range(3)}
    exact = torch.stack([dense(layer) for layer in layers.values()])
    merged = merge([(slider(**layers), 1.5)], 2)
    left_out = torch.stack([dense(layer) for layer in merged.layers.values()]) - 1.5 * exact
    assert merged.error == pytest.approx((left_out.norm() / (1.5 * exact).norm()).item(), rel=1e-4)
    assert 0.1 < merged.error < 0.9


def test_a_change_that_needs_less_gets_less():
    change = low_rank(3)
    doubled = LowRank(torch.cat([change.down, change.down]), torch.cat([change.up, change.up], dim=1))
    small, kept, values = compressed(doubled, 6)
    assert kept == small.rank == 3
    assert torch.allclose(dense(small), 2 * dense(change), atol=1e-5)
    assert values[3:].max() < 1e-5 * values[0]


def test_a_change_of_zeros():
    zero = LowRank(torch.ones(4, 7), torch.zeros(9, 4))
    merged = merge([(slider(x=zero), 1.0)], 2)
    assert merged.error == 0.0
    assert not dense(merged.layers["x"]).any()


def test_half_precision_factors_stay_in_range():
    """A large up beside a small down: the singular values are shared out over both."""
    change = LowRank(1e-6 * low_rank(4).down, 1e6 * low_rank(4).up)
    small, _, _ = compressed(change, 4)
    assert small.up.abs().max() < 100 and small.down.abs().max() < 100
    assert torch.allclose(dense(small), dense(change), rtol=1e-4, atol=1e-4)


def test_the_same_slider_twice_has_no_double_rank():
    one = slider(x=low_rank(3, dtype=torch.float16))
    merged = merge([(one, 0.5), (one, 0.25)])
    assert merged.rank == 3
    assert torch.allclose(dense(merged.layers["x"]), 0.75 * dense(one.layers["x"]), atol=1e-5)
    assert merge([(one, 1.0)]).layers["x"] is one.layers["x"]


def test_layers_of_one_slider_alone_are_kept():
    merged = merge([(slider("a", x=low_rank(2), y=low_rank(3)), 1.0), (slider("b", x=low_rank(4, seed=1)), 2.0)])
    assert {name: change.rank for name, change in merged.layers.items()} == {"x": 6, "y": 3}


def test_a_pointwise_convolution_meets_a_linear_layer():
    linear, conv = low_rank(2), low_rank(3, inner=(7, 1, 1), seed=1)
    merged = merge([(slider("a", x=linear), 1.0), (slider("b", x=conv), 1.0)])
    assert merged.layers["x"].down.shape == (5, 7, 1, 1)
    assert torch.allclose(dense(merged.layers["x"]), dense(linear) + dense(conv), atol=1e-5)


def test_other_kinds_are_kept_alone_and_refused_together():
    bias = Adapter({"diff_b": torch.ones(3)})
    merged = merge([(slider("a", x=low_rank(2), b=bias), 0.5)], 1)
    assert (merged.layers["b"].parts, merged.layers["b"].scale) == (bias.parts, 0.5)
    both = [(slider("a", b=bias), 1.0), (slider("c", b=low_rank(2)), 1.0)]
    message = (
        r"Layer b is changed by 'a' \(bias\) and 'c' \(LoRA\), and not all of these .*in one stack they act together"
    )
    with pytest.raises(ValueError, match=message):
        merge(both)


def test_what_a_rank_cannot_be_given_to_is_named():
    one = slider("a", x=low_rank(4), b=Adapter({"diff_b": torch.ones(3)}), d=Adapter({"diff": torch.ones(3, 2)}))
    assert merge([(one, 0.5)], 2).uncompressed == ("b", "d")
    assert merge([(one, 0.5)]).uncompressed == ()  # nothing was asked for that they have not got
    assert merge([(slider("a", x=low_rank(4)), 1.0)], 2).uncompressed == ()


def test_what_cannot_be_merged():
    one = slider("one", x=low_rank(2))
    with pytest.raises(
        ValueError, match=r"Layer x: slider 'two' changes a weight of shape .9, 5. and slider 'one' one of"
    ):
        merge([(one, 1.0), (slider("two", x=low_rank(2, inner=(5,))), 1.0)])
    for stack in ([], [(one, 0.0)], [(one, 1.0), (one, -1.0)]):
        with pytest.raises(ValueError, match="nothing to merge"):
            merge(stack)
    with pytest.raises(ValueError, match="at least 1, or 0 to keep all; got -1"):
        merge([(one, 1.0)], -1)
