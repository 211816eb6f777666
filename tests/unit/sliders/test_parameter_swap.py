"""Parameters that no layer's formula knows, on plain PyTorch modules."""

import pytest
import torch
from concept_sliders.comfy_host.parameters import COMFY_PARAMETERS
from concept_sliders.sliders.changes import Dense
from concept_sliders.sliders.equation.hooks import SliderHooks
from torch import Tensor, nn


class Block(nn.Module):
    """A module with a parameter of its own and a layer in it, that gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4), requires_grad=False)
        self.layer = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x) * self.gain, x


class Paged(nn.Module):
    """An embedding whose weight comes from elsewhere, and has functions on its way, as in ComfyUI."""

    weight_function: list = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4), requires_grad=False)
        self._v = object()
        self._stored = self.weight.detach().clone()

    def forward(self, index: Tensor) -> Tensor:
        weight = self._stored
        for function in self.weight_function:
            weight = function(weight)
        return weight[index]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def bank_of(module: nn.Module, *changes: Dense) -> SliderHooks:
    return SliderHooks({module: list(enumerate(changes))}, {module: "blocks.0"}, COMFY_PARAMETERS)


def at(*strengths: float) -> Tensor:
    return torch.tensor([strengths])


def test_a_block_that_gives_two_tensors():
    block, x, by = Block(), torch.randn(3, 4), [torch.randn(4), torch.randn(4)]
    bank = bank_of(block, *(Dense({"gain": each}) for each in by))
    expected = block.layer(x) * (block.gain + 0.5 * by[0] - 2 * by[1])
    own = block.gain
    with torch.inference_mode(), bank.acting(at(0.5, -2.0).repeat(3, 1)):
        y, same = block(x)
    torch.testing.assert_close(y, expected)
    assert same is x
    assert block._parameters["gain"] is own


@pytest.mark.parametrize(
    "make", [lambda: nn.Embedding(5, 4), lambda: nn.ConvTranspose1d(4, 5, 3), lambda: nn.RMSNorm(4)]
)
def test_weights_and_biases_of_other_modules(make):
    module = make().requires_grad_(False)
    x = torch.tensor([0, 3]) if isinstance(module, nn.Embedding) else torch.randn(2, 4, 4)
    by = {name: torch.randn_like(own) for name, own in module.named_parameters()}
    changed = {name: own + 0.7 * by[name] for name, own in module.named_parameters()}
    expected = torch.func.functional_call(module, changed, (x,))
    with bank_of(module, Dense(by)).acting(at(0.7)):
        torch.testing.assert_close(module(x), expected)


def test_a_weight_by_its_formula_beside_a_parameter_without_one():
    layer, x, by = nn.LayerNorm(4, bias=False), torch.randn(3, 4), torch.randn(4)
    layer.register_parameter("shift", nn.Parameter(torch.zeros(4), requires_grad=False))
    with bank_of(layer, Dense({"weight": by, "shift": by})).acting(at(1.0)):
        assert torch.equal(layer.shift, by)
        torch.testing.assert_close(layer(x), nn.functional.layer_norm(x, (4,), layer.weight + by))


@pytest.mark.parametrize("make", [Block, lambda: nn.RMSNorm(4)])
def test_changes_that_learn_have_the_gradients_of_the_parameter_itself(make):
    module, x = make().requires_grad_(False), torch.randn(3, 4)
    name, own = next(iter(module.named_parameters()))
    by = torch.randn_like(own).requires_grad_()

    def answer():
        y = module(x)
        return (y[0] if isinstance(y, tuple) else y).square().sum()

    with bank_of(module, Dense({name: by})).acting(at(0.5)):
        (found,) = torch.autograd.grad(answer(), by)
    assert module._parameters[name] is own
    module._parameters[name] = changed = (own + 0.5 * by).detach().requires_grad_()
    (expected,) = torch.autograd.grad(answer(), changed)
    torch.testing.assert_close(found, 0.5 * expected)


def test_strengths_that_differ_between_batch_entries():
    block, other = Block(), nn.Linear(4, 4)
    bank = SliderHooks({block: [(0, Dense({"gain": torch.ones(4)}))], other: [(1, Dense({"bias": torch.ones(4)}))]})
    strengths = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    assert bank.need_separate_evaluations(strengths)
    assert not bank.need_separate_evaluations(strengths.flip(1))
    assert not bank.need_separate_evaluations(strengths[:1])
    named = bank_of(block, Dense({"gain": torch.ones(4)}))
    with (
        pytest.raises(ValueError, match=r"Layer blocks.0 is a Block: the change of its gain cannot differ between"),
        named.acting(strengths[:, :1]),
    ):
        pass


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_model_has_in_it_is_seen(kept):
    """Its own parameter is another one later, or written over."""
    block, by = Block(), torch.randn(4)
    bank = bank_of(block, Dense({"gain": by}))

    def check():
        with bank.acting(at(0.5), room=2**20 if kept else None):
            found = block.gain
        assert torch.equal(found, block.gain + 0.5 * by)
        return found.data_ptr()

    first = check()
    assert (check() == first) or not kept
    assert bank.size_bytes == (16 if kept else 0)
    block.gain.add_(1.0)
    check()
    block.gain = nn.Parameter(torch.randn(4), requires_grad=False)
    check()


def test_a_change_that_does_not_fit_leaves_everything_in_place():
    block = Block()
    block.register_parameter("shift", nn.Parameter(torch.zeros(4), requires_grad=False))
    own = dict(block._parameters)
    bank = bank_of(block, Dense({"gain": torch.ones(4), "shift": torch.ones(3)}))
    with pytest.raises(RuntimeError), bank.acting(at(1.0)):
        pass
    assert all(block._parameters[name] is each for name, each in own.items())


@pytest.mark.parametrize("functions", [None, [torch.neg]])
def test_a_weight_that_is_paged_in(functions):
    """Its stored numbers stay what they are; the change comes after what is done to it already."""
    module, index, by = Paged(), torch.tensor([0, 3]), torch.randn(5, 4)
    if functions is not None:
        module.weight_function = functions
    stored, own, before = module._stored.clone(), module.weight, dict(vars(module))
    start = -stored if functions else stored
    with bank_of(module, Dense({"weight": by})).acting(at(0.5)):
        assert module.weight is own
        torch.testing.assert_close(module(index), (start + 0.5 * by)[index])
    assert torch.equal(module._stored, stored)
    assert vars(module) == before
    assert module.weight_function is (Paged.weight_function if functions is None else functions)


def test_a_weight_of_which_nothing_is_as_wide_as_its_changes():
    """What stands in for a weight in eight bits is wider: its dtype is one of storage."""
    block, by = Block(), torch.full((4,), 0.01)
    block.gain = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    with bank_of(block, Dense({"gain": by})).acting(at(1.0)):
        assert torch.equal(block.gain, torch.full((4,), 1.01))
