"""Borrowing the host's loaded model for training, and giving it back as it was.

No copy is made. The host loads weights in inference mode, and autograd refuses to keep such tensors for
backward; here each is lent out, for the time of training, as an ordinary tensor on the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

__all__ = ["Loan", "ModelLost", "ModelPatcher", "borrowed", "for_autograd"]


@contextmanager
def borrowed(patcher: ModelPatcher, memory_required: int = 0) -> Iterator[Loan]:
    """The model, loaded on its device, through which gradients can run while the context lasts.

    Its weights stay untouched, and the same tensors are back in their places afterwards, however it ends.
    memory_required: bytes the host should keep free beside the weights.
    """
    with torch.inference_mode(False), torch.enable_grad():
        loan = Loan(patcher, memory_required)
        patcher.pre_run()
        try:
            loan.take()
            yield loan
        finally:
            loan.give_back()
            patcher.cleanup()


class ModelLost(Exception):
    """A model that was given back for a while cannot be borrowed again.

    Of no kind that anything else raises, such as a look at a slider, that may fail and be done without.
    """


class Loan:
    """Ordinary tensors on the same memory, in the place of a loaded model's inference tensors."""

    def __init__(self, patcher: ModelPatcher, memory_required: int = 0):
        self.patcher, self.memory_required = patcher, memory_required
        self._lent: list[tuple[dict, str, Tensor, Tensor]] = []
        self._load()

    def take(self) -> None:
        for module in self.patcher.model.modules():
            # the last for tables that a model keeps as plain attributes
            for tensors in (module._parameters, module._buffers, vars(module)):
                for name, tensor in list(tensors.items()):
                    if isinstance(tensor, Tensor) and tensor.is_inference():
                        tensors[name] = _ordinary(tensor)
                        self._lent.append((tensors, name, tensor, tensors[name]))

    def give_back(self) -> None:
        """The host's own tensors, where ours are still in their place; what it has put there since stays."""
        while self._lent:
            tensors, name, tensor, ours = self._lent.pop()
            if tensors.get(name) is ours:
                tensors[name] = tensor

    @contextmanager
    def returned(self) -> Iterator[None]:
        """Within the block the model is the host's, in its own mode: it may move it to make room for another.

        It is loaded and borrowed again after it. What is made within are inference tensors.
        Raises ModelLost if there is no way to load it again, even in place of all other models.
        """
        self.give_back()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._load_again()
            self.take()

    def _load_again(self) -> None:
        try:
            self._load()
        except (RuntimeError, OSError):  # for want of memory, most likely
            comfy.model_management.unload_all_models()
            try:
                self._load()
            except (RuntimeError, OSError) as error:
                raise ModelLost(f"The model has made room for others, and cannot be loaded again: {error}") from error

    def _load(self) -> None:
        with torch.inference_mode():  # the host's own mode: outside it copies weights as it puts them in place
            comfy.model_management.load_models_gpu([self.patcher], memory_required=self.memory_required)


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor on the same memory that autograd may keep."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def for_autograd(conditioning: list) -> list:
    """The conditioning outside inference mode, so that autograd may keep it."""

    def plain(value):
        return value.clone() if isinstance(value, Tensor) else value

    return [[plain(tensor), {key: plain(v) for key, v in options.items()}] for tensor, options in conditioning]
