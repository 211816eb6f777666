"""Learning rates in units of the layer, against what a step of these sizes does to the weight and to its input."""

import pytest
import torch
from concept_sliders.training.step_sizes import RHO, TURN, LayerSize

SHAPES = ((320, 320), (1280, 640), (64, 2816), (128, 64, 3, 3), (32, 16, 3, 3, 3))


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


def start(size, rank, generator):
    """A as a slider has it at the start, (rank, n)."""
    return torch.empty(rank, size.inputs).uniform_(-1, 1, generator=generator) * size.inputs**-0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "scale"), [(1, 1.0), (4, 0.25), (32, 1.0)])
@pytest.mark.parametrize("weight_rms", [1e-3, 0.2])
def test_a_step_of_b_changes_the_weight_by_the_share_rho(shape, rank, scale, weight_rms):
    generator, size = torch.Generator().manual_seed(0), LayerSize(shape, weight_rms)
    signs = torch.randint(0, 2, (shape[0], rank), generator=generator) * 2.0 - 1.0
    step = scale * size.rate_up(RHO, rank, scale) * signs @ start(size, rank, generator)
    assert rms(step) / weight_rms == pytest.approx(RHO, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_a_turns_it_by_the_same_share_in_wide_and_narrow_layers(shape):
    generator, size = torch.Generator().manual_seed(0), LayerSize(shape, 0.05)
    x = torch.randint(0, 2, (size.inputs, 256), generator=generator) * 2.0 - 1.0  # of one size, in any direction
    seen = rms(start(size, 64, generator) @ x)
    turned = size.rate_down(RHO) * (x.sign() * x).sum(0)  # a row of A with the signs of an input
    assert rms(turned) / seen == pytest.approx(TURN * RHO, rel=0.1)


def test_a_whole_difference_changes_the_weight_by_the_share_rho():
    assert LayerSize((8, 8), 0.2).rate_dense(RHO) == pytest.approx(0.2 * RHO)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_of_zeros_learns_as_a_fresh_one(shape):
    fresh = torch.nn.Linear(LayerSize(shape, 0.0).inputs, 256).weight
    known, unknown = LayerSize(shape, rms(fresh.detach())), LayerSize(shape, 0.0)
    assert unknown.rate_up(RHO, 4, 1.0) == pytest.approx(known.rate_up(RHO, 4, 1.0), rel=0.05)
