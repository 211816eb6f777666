"""Merged weights: their values, their rounding, and that the layers' own are never touched."""

import pytest
import torch
from concept_sliders.sliders.changes import Dense, LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.sliders.equation.merged_weights import MergedWeights
from concept_sliders.sliders.equation.weight_updates import UPDATES, bytes_needed, can_merge
from torch import nn


def small_model(dtype=torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"linear": nn.Linear(12, 10), "conv": nn.Conv2d(3, 5, 3, padding=1), "norm": nn.LayerNorm(12)}
    return nn.ModuleDict(layers).to(dtype)


def changes_of(model: nn.ModuleDict, sliders: int, size: float = 1.0):
    """Two low-rank sliders and more: all act on the linear layer, odd ones on the convolution, one on norms."""
    torch.manual_seed(1)
    placed = {module: [] for module in model.values()}
    for index in range(sliders):
        for name in ("linear", "conv") if index % 2 else ("linear",):
            fresh = LowRank.fresh(tuple(model[name].weight.shape), 2)
            placed[model[name]].append((index, LowRank(fresh.down, size * torch.randn_like(fresh.up))))
    placed[model["norm"]].append((0, Dense({"weight": torch.randn(12), "bias": torch.randn(12)})))
    placed[model["linear"]].append((0, Dense({"bias": torch.randn(10)})))
    return [(module, "", tuple(changes)) for module, changes in placed.items()]


def expected(layers, strengths) -> list[torch.Tensor]:
    """Every touched parameter in float64, by the formula."""
    values = []
    for module, _, changes in layers:
        for name, own in module._parameters.items():
            total = own.detach().double()
            for index, change in changes:
                s = float(strengths[index])
                if isinstance(change, Dense):
                    total = total + s * change.differences[name].double() if name in change.differences else total
                elif name == "weight":
                    delta = change.up.double().flatten(1) @ change.down.double().flatten(1)
                    total = total + s * delta.view_as(total)
            values.append(total)
    return values


def present(layers) -> list[torch.Tensor]:
    return [own.detach().double() for module, _, _ in layers for own in module._parameters.values()]


def test_the_weights_are_those_of_the_formula_and_go_again():
    model = small_model()
    layers = changes_of(model, 4)
    own = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    merged = MergedWeights()
    merged.prepare(layers)
    for strengths in torch.randn(5, 4):
        with merged.acting(strengths):
            for have, want in zip(present(layers), expected(layers_on(own, layers), strengths), strict=True):
                torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)
        for name, tensor in model.named_parameters():
            assert tensor is own[name][0]
            assert torch.equal(tensor, own[name][1])


def layers_on(own, layers):
    """The layers with their own parameters, whatever stands in for them now."""
    copies = []
    for (module, name, changes), key in zip(layers, ("linear", "conv", "norm"), strict=True):
        bare = nn.Module()
        for parameter in module._parameters:
            bare.register_parameter(parameter, own[f"{key}.{parameter}"][0])
        copies.append((bare, name, changes))
    return copies


def test_zero_strengths_put_nothing_in_place():
    model = small_model()
    layers = changes_of(model, 3)
    before = [id(p) for p in model.parameters()]
    merged = MergedWeights()
    merged.prepare(layers)
    with merged.acting(torch.zeros(3)):
        assert [id(p) for p in model.parameters()] == before
    assert merged.uses == 0


def test_both_modes_agree():
    model = small_model()
    layers = changes_of(model, 4)
    bank = SliderHooks({module: changes for module, _, changes in layers})
    merged = MergedWeights()
    merged.prepare(layers)
    strengths = torch.tensor([0.5, -1.0, 0.0, 2.0])
    inputs = {"linear": torch.randn(3, 12), "conv": torch.randn(3, 3, 6, 6), "norm": torch.randn(3, 4, 12)}
    with torch.no_grad():
        with merged.acting(strengths):
            by_merging = {name: model[name](x) for name, x in inputs.items()}
        with bank.acting(strengths[None]):
            unmerged = {name: model[name](x) for name, x in inputs.items()}
    torch.testing.assert_close(unmerged, by_merging, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", UPDATES)
def test_rounding_does_not_pile_up(dtype):
    """However often one slider is turned, a weight is at most (updates + 1) / 2 units in the last place off."""
    model = small_model(dtype)
    layers = changes_of(model, 6, size=0.05)
    own = {name: (tensor, None) for name, tensor in model.named_parameters()}
    merged = MergedWeights()
    merged.prepare(layers)
    strengths = torch.ones(6)
    worst = 0.0
    for turn in range(300):
        strengths = strengths.clone()
        strengths[turn % 6] += 0.1 if turn % 2 else -0.1
        with merged.acting(strengths):
            have = present(layers)
        for value, want in zip(have, expected(layers_on(own, layers), strengths), strict=True):
            unit = torch.finfo(dtype).eps * want.abs().clamp_min(torch.finfo(dtype).eps)
            scale = unit.clamp_min(torch.finfo(dtype).eps * 0.1)  # small sums of larger terms
            worst = max(worst, ((value - want).abs() / scale).max().item())
    assert worst <= UPDATES[dtype] + 1


def test_an_update_is_no_rebuild():
    """Turning one slider of many changes the weights it acts on, and is told apart from building anew."""
    model = small_model()
    layers = changes_of(model, 8)
    merged = MergedWeights()
    merged.prepare(layers)
    strengths = torch.ones(8)
    with merged.acting(strengths):
        before = model["conv"].weight.clone()
    strengths[2] = 0.5  # an even one: not on the convolution
    model["conv"].weight.data.add_(1.0)  # unseen by an update, seen by a rebuild
    with merged.acting(strengths):
        assert torch.equal(model["conv"].weight, before)
    with merged.acting(strengths, version="written to"):
        torch.testing.assert_close(model["conv"].weight, before + 1.0)


@pytest.mark.parametrize(
    ("dtype", "before", "after", "built"),
    [
        (torch.float32, 30.0, 0.01, False),  # 0.01 counts as a half, and 30 is at most 64 times that
        (torch.float32, 40.0, 0.01, True),
        (torch.float32, 40.0, 2.0, False),
        (torch.float16, 0.9, 0.01, False),  # at most twice a half
        (torch.float16, 1.1, 0.01, True),
        (torch.float16, -1.1, 0.01, True),
    ],
)
def test_coming_back_from_far_is_a_rebuild_and_turning_a_little_down_is_not(dtype, before, after, built):
    model = small_model(dtype)
    layers = changes_of(model, 8, size=0.05)
    merged, strengths = MergedWeights(), torch.ones(8)
    merged.prepare(layers)
    strengths[2] = before
    with merged.acting(strengths):
        pass
    model["conv"].weight.data.add_(1.0)  # unseen by an update, seen by a rebuild
    strengths[2] = after
    with merged.acting(strengths):
        conv = model["conv"].weight.double()
    of_conv = expected(layers, strengths)[2] - (0.0 if built else 1.0)
    assert (conv - of_conv).abs().max() < 1e-2


def test_a_layer_with_new_weights_is_built_anew():
    model = small_model()
    layers = changes_of(model, 2)
    merged = MergedWeights()
    merged.prepare(layers)
    strengths = torch.ones(2)
    with merged.acting(strengths):
        before = model["linear"].weight.detach().clone()
    model["linear"].weight = nn.Parameter(model["linear"].weight.detach() + 1.0)
    with merged.acting(strengths):
        torch.testing.assert_close(model["linear"].weight, before + 1.0)


def test_an_error_in_the_block_and_one_while_building():
    model = small_model()
    layers = changes_of(model, 2)
    before = [id(p) for p in model.parameters()]
    merged = MergedWeights()
    merged.prepare(layers)
    with pytest.raises(KeyboardInterrupt), merged.acting(torch.ones(2)):
        raise KeyboardInterrupt
    assert [id(p) for p in model.parameters()] == before
    broken = [(m, n, ((0, LowRank(torch.ones(1, 7), torch.ones(10, 1))),)) for m, n, _ in layers[:1]]
    merged.prepare(broken)
    with pytest.raises(RuntimeError), merged.acting(torch.ones(1)):
        raise AssertionError("never reached")
    assert [id(p) for p in model.parameters()] == before
    merged.prepare(layers)
    with merged.acting(torch.ones(2)):
        have = present(layers)
    fresh = MergedWeights()
    fresh.prepare(layers)
    with fresh.acting(torch.ones(2)):
        assert all(torch.equal(a, b) for a, b in zip(have, present(layers), strict=True))


def test_memory_is_known_before_it_is_taken():
    model = small_model(torch.float16)
    layers = changes_of(model, 2)
    assert bytes_needed(layers) == 2 * (120 + 10 + 135 + 24)  # the convolution's bias is not touched
    assert can_merge(layers)
    model["linear"].weight = nn.Parameter(torch.zeros(10, 12, dtype=torch.float8_e4m3fn), requires_grad=False)
    assert not can_merge(layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_back_from_far_leaves_no_coarser_rounding(dtype):
    """An update from a strength of a thousand would leave that size's rounding, or infinity in half precision."""
    model = small_model(dtype)
    layers = changes_of(model, 4)
    near, far = torch.full((4,), 0.5), torch.tensor([1e6, 0.5, 0.5, 0.5])
    merged, fresh = MergedWeights(), MergedWeights()
    for each in (merged, fresh):
        each.prepare(layers)
    for strengths in (near, far, near):
        with merged.acting(strengths):
            back = present(layers)
    with fresh.acting(near):
        assert all(map(torch.equal, back, present(layers)))
