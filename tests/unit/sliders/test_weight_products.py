"""Inner products of sliders' weight changes: in factors as in the dense changes."""

import pytest
import torch
from concept_sliders.sliders.changes import Adapter, LowRank, change_from
from concept_sliders.sliders.weight_products import weight_products
from hypothesis import given, settings
from hypothesis import strategies as st


def low_rank(rank, out=9, inner=(7,), seed=0, dtype=torch.float32) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inner) - 1)
    down, up = torch.randn(rank, *inner, generator=generator), torch.randn(out, rank, *tail, generator=generator)
    return LowRank(down.to(dtype), up.to(dtype))


def dense(change: LowRank) -> torch.Tensor:
    return change.up.flatten(1).double() @ change.down.flatten(1).double()


def gram_of_dense(sliders):
    def inner(one, other):
        return sum(float((dense(one[name]) * dense(other[name])).sum()) for name in one.keys() & other.keys())

    return torch.tensor([[inner(one, other) for other in sliders] for one in sliders], dtype=torch.float64)


layer_sets = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(layer_sets, st.sampled_from([(7,), (7, 1, 1), (3, 3, 3)]), st.sampled_from([torch.float32, torch.float16]))
def test_they_are_those_of_the_dense_changes(ranks, inner, dtype):
    """Of linear layers and convolutions, of different ranks; layers that only one has count as zero."""
    sliders = [
        {name: low_rank(rank, inner=inner, seed=31 * i + ord(name), dtype=dtype) for name, rank in own.items()}
        for i, own in enumerate(ranks)
    ]
    products = weight_products(sliders)
    torch.testing.assert_close(products.gram, gram_of_dense(sliders))
    norms = [sum(float(dense(c).square().sum()) for c in own.values()) ** 0.5 for own in sliders]
    torch.testing.assert_close(products.norms, torch.tensor(norms, dtype=torch.float64))
    assert products.left_out == ((),) * len(sliders)


def test_cosines_of_a_closed_form():
    """Of an outer product, one at 60 degrees to it, its negative double, and one of another layer."""
    x, y = torch.eye(3)[:1], torch.eye(3)[1:2]
    one, half = LowRank(x, x.T), LowRank(0.5 * x + 0.75**0.5 * y, x.T)
    products = weight_products([{"a": one}, {"a": half}, {"a": one.scaled(-2.0)}, {"b": one}])
    expected = [[1, 0.5, -1, 0], [0.5, 1, -0.5, 0], [-1, -0.5, 1, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(products.cosines.float(), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(products.norms.float(), torch.tensor([1.0, 1.0, 2.0, 1.0]))


def test_a_slider_of_zeros_has_cosine_zero():
    zero = LowRank(torch.ones(2, 7), torch.zeros(9, 2))
    assert weight_products([{"a": zero}, {"a": low_rank(2)}]).cosines.tolist()[0] == [0.0, 0.0]


def test_alpha_and_strength_count():
    change = low_rank(4)
    with_alpha = change_from(
        "a", {"lora_down.weight": change.down, "lora_up.weight": change.up, "alpha": torch.tensor(2.0)}
    )
    gram = weight_products([{"a": change}, {"a": with_alpha}, {"a": change.scaled(3.0)}]).gram
    torch.testing.assert_close(gram[0] / gram[0, 0], torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64))


def test_a_linear_layer_and_a_1x1_convolution_are_the_same():
    flat, kernel = low_rank(2), low_rank(2, inner=(7, 1, 1))
    torch.testing.assert_close(weight_products([{"a": flat}, {"a": kernel}]).cosines, torch.ones(2, 2).double())


def test_plain_differences_and_biases_count():
    """Also beside low-rank products, with a scale; of norms too."""
    product, weight, bias = low_rank(2), torch.randn(9, 7), torch.randn(9)
    whole = Adapter({"diff": weight, "diff_b": bias}, 2.0)
    parts = {"lora_down.weight": product.down, "lora_up.weight": product.up, "alpha": torch.tensor(1.0)}
    with_bias = Adapter({**parts, "diff_b": bias})
    gram = weight_products([{"a": whole}, {"a": product}, {"a": with_bias}]).gram
    w, d, b = 2 * weight.double(), dense(product), bias.double()
    expected = [
        [w.square().sum() + 4 * b @ b, (w * d).sum(), (w * d).sum() / 2 + 2 * b @ b],
        [(w * d).sum(), d.square().sum(), d.square().sum() / 2],
        [(w * d).sum() / 2 + 2 * b @ b, d.square().sum() / 2, d.square().sum() / 4 + b @ b],
    ]
    torch.testing.assert_close(gram, torch.tensor(expected, dtype=torch.float64))
    norm = Adapter({"w_norm": torch.tensor([3.0, 4.0]), "b_norm": torch.tensor([12.0, 0.0])})
    assert weight_products([{"n": norm}]).norms.tolist() == [13.0]


def test_other_kinds_are_left_out_by_name():
    dora = Adapter(
        {"lora_down.weight": torch.ones(1, 7), "lora_up.weight": torch.ones(9, 1), "dora_scale": torch.ones(9, 1)}
    )
    loha = Adapter({f"hada_w{i}_{end}": torch.ones(1, 1) for i in (1, 2) for end in "ab"})
    products = weight_products([{"x": dora, "y": loha, "a": low_rank(1)}, {"x": low_rank(1)}])
    assert products.left_out == (("x", "y"), ()) and products.gram[0, 1] == 0


def test_sliders_of_different_models_are_refused():
    with pytest.raises(ValueError, match=r"Layer a: .* shapes \(9, 7\) and \(8, 7\).*different models"):
        weight_products([{"a": low_rank(1)}, {"a": low_rank(1, out=8)}])
