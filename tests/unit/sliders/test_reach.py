"""Layers whose weights a model reads without running them: changes act there as well, or are refused by name."""

import pytest
import torch
import torch.nn.functional as F
from concept_sliders.sliders.changes import Dense, LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.sliders.equation.module_changes import Patch
from concept_sliders.sliders.equation.reach import BypassedLayers, evaluated
from torch import Tensor, nn


class Fused(nn.Module):
    """A model that hands weights of its layers to kernels, but for those of `run`; `unused` takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.run, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.layer_norm, self.group_norm, self.conv = nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Conv1d(4, 4, 3)
        for own in self.parameters():
            nn.init.normal_(own)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(F.linear(x, self.linear.weight, self.linear.bias), (4,), *self.layer_norm.parameters())
        y = self.run(F.layer_norm(y, (4,), self.layer_norm.weight, self.layer_norm.bias))
        y = F.group_norm(y.transpose(1, 2), 2, self.group_norm.weight, self.group_norm.bias)
        return self.conv.forward(y)  # which runs no hooks


class Doubled(Patch):
    """A change that depends on the weight."""

    parameter, relative, linear = "weight", True, True

    def changed(self, weight: Tensor, strength: float, name: str) -> Tensor:
        return weight * (1 + strength)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def low_rank(module: nn.Module) -> LowRank:
    out, inner, *kernel = module.weight.shape
    return LowRank(torch.randn(2, inner, *kernel), torch.randn(out, 2, *(1 for _ in kernel)))


def dense(module: nn.Module) -> Dense:
    return Dense({name: torch.randn_like(own) for name, own in module.named_parameters()})


CHANGES = {
    "linear": [low_rank, dense, lambda _: Doubled()],
    "run": [low_rank],
    "unused": [low_rank, dense],
    "group_norm": [dense, lambda _: Doubled()],
    "conv": [low_rank, dense],
}


def hooks_on(model: Fused, changes: dict[str, list]) -> SliderHooks:
    layers = {getattr(model, name): list(enumerate(own)) for name, own in changes.items()}
    return SliderHooks(layers, {getattr(model, name): name for name in changes})


def expected_at(model: Fused, changes: dict[str, list], strengths: Tensor, x: Tensor) -> Tensor:
    """What the model answers with its weights changed by hand."""
    parameters = {name: own.clone() for name, own in model.named_parameters()}
    for name, own in changes.items():
        for change, s in zip(own, strengths.tolist(), strict=False):
            if isinstance(change, LowRank):
                product = change.up.flatten(1) @ change.down.flatten(1)
                parameters[f"{name}.weight"] += s * product.view_as(parameters[f"{name}.weight"])
            elif isinstance(change, Dense):
                for parameter, by in change.differences.items():
                    parameters[f"{name}.{parameter}"] += s * by
            else:
                parameters[f"{name}.weight"] *= 1 + s
    return torch.func.functional_call(model, parameters, (x,))


def acted(model: Fused, hooks: SliderHooks, strengths: Tensor, x: Tensor) -> Tensor:
    def evaluate() -> Tensor:
        with hooks.acting(strengths):
            return model(x)

    return evaluated(evaluate)


def untouched(model: Fused) -> bool:
    return all(
        type(m._parameters) is dict and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules()
    )


@pytest.mark.parametrize("kind", range(3))
def test_every_kind_of_change_acts(kind):
    model, x = Fused(), torch.randn(2, 5, 4)
    changes = {name: [make[kind](getattr(model, name))] for name, make in CHANGES.items() if kind < len(make)}
    hooks = hooks_on(model, changes)
    with torch.inference_mode():
        for strengths in (torch.tensor([[0.7]]), torch.tensor([[-1.0]]), torch.tensor([[0.7]])):
            y = acted(model, hooks, strengths, x)
            torch.testing.assert_close(y, expected_at(model, changes, strengths[0], x))
    assert untouched(model)


def test_several_sliders_of_all_kinds():
    model, x, strengths = Fused(), torch.randn(2, 5, 4), torch.tensor([[0.5, -0.3, 0.8]])
    changes = {name: [make(getattr(model, name)) for make in kinds] for name, kinds in CHANGES.items()}
    y = acted(model, hooks_on(model, changes), strengths, x)
    torch.testing.assert_close(y, expected_at(model, changes, strengths[0], x))


def test_the_layers_are_found_once_and_by_name():
    model, x = Fused(), torch.randn(2, 5, 4)
    changes = {name: [low_rank(getattr(model, name))] for name in ("linear", "run", "unused", "conv")}
    hooks = hooks_on(model, changes)
    with pytest.raises(BypassedLayers, match="weights of conv, linear without") as e, hooks.acting(torch.ones(1, 1)):
        model(x)
    assert e.value.modules == {model.linear, model.conv} and untouched(model)
    with hooks.acting(torch.ones(1, 1)):
        y = model(x)
    torch.testing.assert_close(y, expected_at(model, changes, torch.ones(1), x))


def test_what_one_set_of_sliders_has_found_others_know():
    model, x, found = Fused(), torch.randn(2, 5, 4), set()
    change = [(0, low_rank(model.linear))]
    hooks = [SliderHooks({model.linear: change}, bypassed=found) for _ in range(2)]
    acted(model, hooks[0], torch.ones(1, 1), x)
    assert found == {model.linear}
    later = SliderHooks({model.linear: change}, bypassed=found)
    with later.acting(torch.ones(1, 1)):
        y = model(x)
    assert torch.equal(y, acted(model, hooks[1], torch.ones(1, 1), x))


def test_entries_that_differ_are_for_evaluations_of_their_own():
    model, x = Fused(), torch.randn(2, 5, 4)
    hooks = hooks_on(model, {"linear": [low_rank(model.linear)]})
    with pytest.raises(BypassedLayers), hooks.acting(torch.tensor([[1.0], [2.0]])):
        model(x)
    assert hooks.need_separate_evaluations(torch.tensor([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="Layer linear is a Linear: the change of its weight cannot differ"):
        hooks.acting(torch.tensor([[1.0], [2.0]])).__enter__()


def test_layers_that_learn_are_refused_each_time():
    model, x = Fused(), torch.randn(2, 5, 4)
    change = low_rank(model.linear)
    change.up.requires_grad_()
    hooks = hooks_on(model, {"linear": [change]})
    for _ in range(2):
        with pytest.raises(BypassedLayers, match=r"weights of linear without.*cannot be trained there"):
            acted(model, hooks, torch.ones(1, 1), x)


def test_what_the_model_puts_into_a_layer_while_it_is_watched_stays():
    model, put = Fused(), nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    hooks = hooks_on(model, {"unused": [low_rank(model.unused)]})
    with pytest.raises(BypassedLayers), hooks.acting(torch.ones(1, 1)):  # PyTorch looks at what was there
        model.unused.weight = put
        del model.unused.bias
    assert model.unused.weight is put and "bias" not in model.unused._parameters and untouched(model)


def test_an_error_in_the_model_is_the_one_that_is_raised():
    model = Fused()
    with pytest.raises(RuntimeError), hooks_on(model, {"conv": [low_rank(model.conv)]}).acting(torch.ones(1, 1)):
        model(torch.randn(2, 5, 3))
    assert untouched(model)
