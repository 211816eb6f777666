"""Gradients where operations overwrite what autograd has kept: those of the numbers before."""

import pytest
import torch
from concept_sliders.comfy_host.saved_tensors import overwriting_saved_tensors

WAYS = {
    "in place": lambda x: x.mul_(0.5),
    "through a view": lambda x: x[3:9].zero_(),
    "through another shape": lambda x: x.view(8, 8).t().add_(1.0),
    "as an output": lambda x: torch.add(x, 1.0, out=x.detach()),
    "as one of several": lambda x: torch._foreach_mul_([x.detach()], 3.0),
    "by index": lambda x: x.index_put_((torch.tensor([1, 2]),), torch.zeros(2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_numbers_before(way):
    a = torch.randn(64, requires_grad=True)
    with overwriting_saved_tensors():
        x = a * 2.0
        asked = x.sin().sum() + x.view(8, 8).exp().sum()
        with torch.no_grad():
            WAYS[way](x)
        (found,) = torch.autograd.grad(asked, a)
    expected = 2 * torch.cos(2 * a) + 2 * torch.exp(2 * a)
    torch.testing.assert_close(found, expected.detach())


def test_what_takes_an_overwritten_tensors_place_has_its_own_numbers():
    """Addresses come again as soon as a tensor is gone."""
    torch.manual_seed(0)
    for _ in range(300):
        a, asked = torch.randn(64, requires_grad=True), torch.zeros(())
        with overwriting_saved_tensors():
            for factor in range(1, 7):
                x = a * float(factor)
                asked = asked + x.sin().sum()
                x.mul_(0.5)
                del x
            (found,) = torch.autograd.grad(asked, a)
        expected = sum(factor * torch.cos(factor * a.detach()) for factor in range(1, 7))
        torch.testing.assert_close(found, expected)


def test_one_copy_is_made_of_what_was_kept_several_times():
    copies = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copies.extend([func] if func is torch.ops.aten.clone.default else [])
            return func(*args, **(kwargs or {}))

    a = torch.randn(64, requires_grad=True)
    with Counting(), overwriting_saved_tensors():
        x = a * 2.0
        asked = x.sin().sum() + x.cos().sum() + x.sigmoid().sum()
        x.mul_(0.5)
        torch.autograd.grad(asked, a)
    assert len(copies) <= 2  # of x, which sine and cosine keep, and no more than one beside


def test_nothing_is_copied_once_backward_is_done_with_it():
    a = torch.randn(64, requires_grad=True)
    with overwriting_saved_tensors():
        x = a * 2.0
        torch.autograd.grad(x.sin().sum(), a)
        before = x.data_ptr()
        with torch.no_grad():
            x.mul_(0.5)
        assert x.data_ptr() == before
