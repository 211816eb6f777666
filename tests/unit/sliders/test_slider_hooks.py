"""The one equation on plain PyTorch layers, against weights merged by hand."""

import copy

import pytest
import torch
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.sliders.equation.module_changes import Patch
from torch import nn

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "linear, many tokens": (lambda: nn.Linear(5, 7), (3, 2, 4, 5)),
    "convolution 1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "convolution 2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 9, 9)),
    "convolution 2d, dilated": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (3, 4, 9, 9)),
    "convolution 2d, circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        (3, 4, 9, 9),
    ),
    "convolution 3d": (lambda: nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1)), (3, 4, 2, 9, 9)),
}
RANKS = (1, 4, 2)


def changes(layer: nn.Module, ranks=RANKS) -> list[LowRank]:
    shape = layer.weight.shape
    fresh = [LowRank.fresh(tuple(shape), rank) for rank in ranks]
    return [LowRank(f.down, torch.randn_like(f.up)) for f in fresh]


def merged(layer: nn.Module, sliders: list[LowRank], strengths) -> nn.Module:
    """A copy of the layer with weight W + sum of strength * up @ down."""
    layer = copy.deepcopy(layer)
    for slider, strength in zip(sliders, strengths, strict=True):
        delta = slider.up.flatten(1) @ slider.down.flatten(1)
        layer.weight.data += strength * delta.reshape(layer.weight.shape)
    return layer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=LAYERS)
def layer_and_x(request):
    make, shape = LAYERS[request.param]
    return make(), torch.randn(*shape)


def test_equals_merged_weights(layer_and_x):
    layer, x = layer_and_x
    sliders = changes(layer)
    with SliderHooks({layer: list(enumerate(sliders))}).acting(torch.tensor([[0.5, -2.0, 1.5]])):
        y = layer(x)
    torch.testing.assert_close(y, merged(layer, sliders, (0.5, -2.0, 1.5))(x), rtol=1e-5, atol=1e-5)


def test_every_batch_entry_has_its_own_strengths(layer_and_x):
    layer, x = layer_and_x
    sliders = changes(layer)
    strengths = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 2.0, 0.0]])
    with SliderHooks({layer: list(enumerate(sliders))}).acting(strengths):
        y = layer(x)
    for entry, values in enumerate(strengths.tolist()):
        torch.testing.assert_close(y[entry], merged(layer, sliders, values)(x)[entry], rtol=1e-5, atol=1e-5)
    assert torch.equal(y[1], layer(x)[1])


def test_a_strength_stands_for_consecutive_entries():
    """Frames folded into the batch, (b t), follow their image's strengths."""
    layer = nn.Linear(5, 7)
    (slider,) = changes(layer, (2,))
    x = torch.randn(6, 5)
    with SliderHooks({layer: [(0, slider)]}).acting(torch.tensor([[1.0], [-1.0]])):
        y = layer(x)
    torch.testing.assert_close(y[:3], merged(layer, [slider], (1.0,))(x[:3]))
    torch.testing.assert_close(y[3:], merged(layer, [slider], (-1.0,))(x[3:]))


def test_a_batch_that_strengths_do_not_divide():
    layer = nn.Linear(5, 7)
    bank = SliderHooks({layer: list(enumerate(changes(layer, (2,))))}, {layer: "to_q"})
    with bank.acting(torch.tensor([[1.0], [2.0]])):
        layer(torch.randn(4, 5))
        with pytest.raises(ValueError, match=r"to_q runs on a batch of 3.*2 batch entries"):
            layer(torch.randn(3, 5))
    with bank.acting(torch.tensor([[1.0], [1.0]])):  # equal strengths fit any batch
        layer(torch.randn(3, 5))


def test_zero_is_the_bare_layer_bit_for_bit(layer_and_x):
    layer, x = layer_and_x
    bank = SliderHooks({layer: list(enumerate(changes(layer)))})
    bare = layer(x)
    with bank.acting(torch.zeros(3, 3)):
        assert not layer._forward_hooks
        assert torch.equal(layer(x), bare)


def test_a_slider_at_zero_is_left_out():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    one, two = changes(layer, (2, 3))
    broken = LowRank(two.down * float("nan"), two.up)
    bank = SliderHooks({layer: [(0, one), (1, broken)]})
    expected = merged(layer, [one], (1.0,))(x)
    with bank.acting(torch.tensor([[1.0, 0.0]])):
        torch.testing.assert_close(layer(x), expected)


def test_nothing_stays_behind():
    layer, other = nn.Linear(5, 7), nn.Linear(5, 7)
    (slider,) = changes(layer, (2,))
    bank = SliderHooks({layer: [(0, slider)], other: [(0, slider)]})
    before = dict(vars(layer))
    with pytest.raises(KeyboardInterrupt), bank.acting(torch.ones(1, 1)):
        assert layer._forward_hooks
        raise KeyboardInterrupt
    for module in (layer, other):
        assert not module._forward_hooks
        assert not module._forward_hooks_with_kwargs
    assert vars(layer) == before


def test_gradients_equal_those_of_merged_weights(layer_and_x):
    layer, x = layer_and_x
    layer.requires_grad_(False)
    (slider,) = changes(layer, (2,))
    learning = LowRank(nn.Parameter(slider.down.clone()), nn.Parameter(slider.up.clone()))
    bank = SliderHooks({layer: [(0, learning)]})
    for _ in range(2):  # a second step must see the parameters afresh
        with bank.acting(torch.full((1, 1), 0.7)):
            ours = torch.autograd.grad(layer(x).square().sum(), (learning.down, learning.up))
        delta = (learning.up.flatten(1) @ learning.down.flatten(1)).reshape(layer.weight.shape)
        y = torch.func.functional_call(layer, {"weight": layer.weight + 0.7 * delta}, (x,))
        theirs = torch.autograd.grad(y.square().sum(), (learning.down, learning.up))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            learning.down.add_(0.1)
            learning.up.mul_(2.0)


def test_backward_after_inference_mode():
    """Neither weights nor concatenations made under inference mode are saved for backward."""
    first, last = nn.Linear(5, 5), nn.Linear(5, 5)
    with torch.inference_mode():  # as a node loads it
        (frozen,) = changes(last, (2,))
    (start,) = changes(first, (2,))
    learning = LowRank(nn.Parameter(start.down), nn.Parameter(start.up))
    bank = SliderHooks({first: [(0, learning)], last: [(1, frozen)]})
    model, x = nn.Sequential(first, last), torch.randn(3, 5)
    with torch.inference_mode(), bank.acting(torch.ones(1, 2)):
        model(x)
    with bank.acting(torch.ones(1, 2)):
        model(x).square().sum().backward()
    assert learning.up.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_the_dtype_of_the_layer(dtype):
    layer = nn.Linear(64, 64).to(dtype)
    (slider,) = changes(layer.float(), (4,))
    layer.to(dtype)
    x = torch.randn(3, 64)
    with SliderHooks({layer: [(0, slider)]}).acting(torch.ones(1, 1)):
        y = layer(x.to(dtype))
    assert y.dtype == dtype
    expected = merged(layer.float(), [slider], (1.0,))(x)
    assert ((y.float() - expected).norm() / expected.norm()).item() < 10 * torch.finfo(dtype).eps


def test_linear_and_1x1_convolution_forms_are_exchanged():
    linear, conv = nn.Linear(5, 7), nn.Conv2d(5, 7, 1)
    (plain,) = changes(linear, (2,))
    as_conv = LowRank(plain.down[..., None, None], plain.up[..., None, None])
    x, image = torch.randn(3, 5), torch.randn(3, 5, 2, 2)
    expected = merged(linear, [plain], (1.0,))(x), merged(conv, [plain], (1.0,))(image)
    with SliderHooks({linear: [(0, as_conv)], conv: [(0, plain)]}).acting(torch.ones(1, 1)):
        torch.testing.assert_close((linear(x), conv(image)), expected)


def test_what_it_cannot_act_on():
    change = LowRank(torch.zeros(2, 4), torch.zeros(4, 2))
    for module, message in (
        (nn.LayerNorm(4), "norm is a LayerNorm"),
        (nn.Conv2d(4, 4, 1, groups=2), "norm is a Conv2d in 2 groups"),
        (nn.Linear(4, 5), r"norm: the slider has down \(2, 4\) and up \(4, 2\).*\(5, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            SliderHooks({module: [(0, change)]}, {module: "norm"})


def test_memory_is_bounded_over_many_active_sets():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    sliders = changes(layer, (1,) * 12)
    bank = SliderHooks({layer: list(enumerate(sliders))})
    for index in range(12):
        expected = merged(layer, [sliders[index]], (1.0,))(x)
        with bank.acting(torch.eye(12)[index : index + 1]):
            torch.testing.assert_close(layer(x), expected)
    assert len(bank._kept) <= 4


class Added(Patch):
    """A difference that is worked out when it is needed."""

    relative, linear = False, True

    def __init__(self, parameter, difference) -> None:
        self.parameter, self._difference = parameter, difference

    def changed(self, weight, strength, name):
        return weight.add_(self._difference, alpha=strength)


def test_what_is_kept_multiplied_out_is_found_again_by_what_it_is():
    """Not by its place among the changes that act, which is another one beside another slider."""
    layer, x = nn.Linear(5, 5).requires_grad_(False), torch.randn(3, 5)
    by = [{"weight": torch.randn(5, 5), "bias": torch.randn(5)} for _ in range(2)]
    patches = [(0, Added("weight", by[0]["weight"])), *((1, Added(name, by[1][name])) for name in ("weight", "bias"))]
    bank = SliderHooks({layer: patches})
    for strengths in ((0.5, 2.0), (0.0, 2.0), (0.5, 0.0)):
        weight = layer.weight + strengths[0] * by[0]["weight"] + strengths[1] * by[1]["weight"]
        with bank.acting(torch.tensor([strengths])):
            y = layer(x)
        expected = nn.functional.linear(x, weight, layer.bias + strengths[1] * by[1]["bias"])
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_small_alphas():
    """As files of a high rank have it: alpha / rank in the up-projection makes it too small for float16 alone."""
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(8, 64)
    change = LowRank(torch.randn(128, 64) / 8, torch.randn(64, 128) * 1e-7)
    expected = x @ (change.up @ change.down).T
    half = layer.half()
    nn.init.zeros_(half.weight)
    with torch.no_grad(), SliderHooks({half: [(0, change)]}).acting(torch.tensor([[1.0]])):
        y = half(x.half()).float()
    assert ((y - expected).norm() / expected.norm()) < 0.02
