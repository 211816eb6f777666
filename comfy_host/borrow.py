"""Borrows a model that ComfyUI has loaded for training, and gives it back as it was.

No copy is made. ComfyUI loads weights in inference mode, and autograd refuses to store such tensors for backward;
here each is replaced, for the time of training, by an ordinary tensor on the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

__all__ = ["Loan", "ModelLost", "ModelPatcher", "borrowed", "for_autograd"]


@contextmanager
def borrowed(patcher: ModelPatcher, memory_required: int = 0, others: Sequence[ModelPatcher] = ()) -> Iterator[Loan]:
    """Load a model on its device, and let gradients pass through it within the block.

    Its weights stay untouched, and the same tensors are back in their places afterwards, however it ends.
    memory_required: bytes that ComfyUI should keep free beside the weights. others: models that gradients pass
        through beside this one, such as a VAE's; all are loaded together, so that none makes room for another.
    """
    with torch.inference_mode(False), torch.enable_grad():
        loan = Loan(patcher, memory_required, others)
        patcher.pre_run()
        try:
            loan.take()
            yield loan
        finally:
            loan.give_back()
            patcher.cleanup()


class ModelLost(Exception):
    """A model that was given back for a while cannot be borrowed again.

    It is derived from no class in `errors.RECOVERABLE_ERRORS`: a run cannot go on after it.
    """


class Loan:
    """Ordinary tensors on the same memory, in the place of the inference tensors of loaded models."""

    def __init__(self, patcher: ModelPatcher, memory_required: int = 0, others: Sequence[ModelPatcher] = ()):
        self.patchers, self.memory_required = (patcher, *others), memory_required
        self.patcher = patcher
        self._lent: list[tuple[dict, str, Tensor, Tensor]] = []
        self._load()

    def take(self) -> None:
        """Replace the models' inference tensors by ordinary ones."""
        for module in (module for patcher in self.patchers for module in patcher.model.modules()):
            # the last for tables that a model keeps as plain attributes
            for tensors in (module._parameters, module._buffers, vars(module)):
                for name, tensor in list(tensors.items()):
                    if isinstance(tensor, Tensor) and tensor.is_inference():
                        tensors[name] = _ordinary(tensor)
                        self._lent.append((tensors, name, tensor, tensors[name]))

    def give_back(self) -> None:
        """Put ComfyUI's own tensors back where ours are still in their place; what was put there since stays."""
        while self._lent:
            tensors, name, tensor, ours = self._lent.pop()
            if tensors.get(name) is ours:
                tensors[name] = tensor

    @contextmanager
    def returned(self) -> Iterator[None]:
        """Give the model back within the block, in inference mode, so that ComfyUI may move it to make room.

        It is loaded and borrowed again after the block. Tensors made within are inference tensors.
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
        with torch.inference_mode():  # as ComfyUI does: outside inference mode it copies weights as it loads them
            comfy.model_management.load_models_gpu(list(self.patchers), memory_required=self.memory_required)


def _ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor on the same memory that autograd may store."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def for_autograd(conditioning: list) -> list:
    """Copy a CONDITIONING outside inference mode, so that autograd may store it."""

    def plain(value):
        return value.clone() if isinstance(value, Tensor) else value

    return [[plain(tensor), {key: plain(v) for key, v in options.items()}] for tensor, options in conditioning]
