"""Low-rank changes of a part of a weight."""

import pytest
import torch
from concept_sliders.sliders.changes import LowRank

# (dimension of the part, where it starts, its length, the shape of the whole weight)
PARTS = [(0, 4, 4, (12, 6)), (0, 0, 4, (12, 6)), (1, 2, 3, (10, 8))]


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize(
    ("dim", "start", "length", "whole"), [(0, 4, 4, (12, 6)), (0, 0, 4, (12, 6)), (1, 2, 3, (10, 8))]
)
def test_a_widened_change_is_that_of_its_part_and_zero_elsewhere(dim, start, length, whole, kernel):
    part = tuple(length if at == dim else size for at, size in enumerate(whole))
    change = LowRank(torch.randn(2, part[1], *kernel), torch.randn(part[0], 2, *(1 for _ in kernel)))
    widened = change.widened((dim, start, length), (*whole, *kernel), "layer")
    expected = torch.zeros(*whole, *kernel)
    delta = (change.up.flatten(1) @ change.down.flatten(1)).view(*part, *kernel)
    expected.narrow(dim, start, length).copy_(delta)
    torch.testing.assert_close((widened.up.flatten(1) @ widened.down.flatten(1)).view_as(expected), expected)


def test_a_part_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"Layer q: the slider has down \(2, 6\) and up \(4, 2\)"):
        LowRank(torch.randn(2, 6), torch.randn(4, 2)).widened((0, 0, 5), (12, 6), "q")
