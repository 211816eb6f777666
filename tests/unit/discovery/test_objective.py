"""The loss of a direction: its formula, its gradient, and what has not moved yet."""

import pytest
import torch
from concept_sliders.discovery.objective import direction_loss


def test_the_loss_is_one_minus_the_cosine_written_out():
    generator = torch.Generator().manual_seed(0)
    before, directions = (torch.randn(6, 16, generator=generator) for _ in range(2))
    after = before + 0.3 * torch.randn(6, 16, generator=generator)
    for row, loss in enumerate(direction_loss(after, before, directions).tolist()):
        moved = [(a - b).item() for a, b in zip(after[row], before[row])]
        wanted = directions[row].tolist()
        dot = sum(a * b for a, b in zip(moved, wanted))
        expected = 1 - dot / (sum(a * a for a in moved) ** 0.5 * sum(b * b for b in wanted) ** 0.5)
        assert loss == pytest.approx(expected, abs=1e-6)


def test_a_slider_that_does_nothing_yet_is_drawn_along_its_direction():
    before = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    directions = torch.eye(8)[:3]
    after = before.clone().requires_grad_()
    loss = direction_loss(after, before, directions)
    assert loss.tolist() == [1, 1, 1]
    (gradient,) = torch.autograd.grad(loss.sum(), after)
    torch.testing.assert_close(torch.nn.functional.normalize(-gradient, dim=-1), directions)


def test_the_wrong_way_costs_two_and_the_length_costs_nothing():
    direction, start = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    assert direction_loss(-direction, start, direction).item() == pytest.approx(2, abs=1e-6)
    near, far = (direction_loss(step * direction, start, direction).item() for step in (0.1, 10.0))
    assert near == pytest.approx(far, abs=1e-6)
