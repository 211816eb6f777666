"""Tensors moved to another device, wherever they lie."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Values = TypeVar("Values")


def on_device(values: Values, device: torch.device) -> Values:
    """The same lists, tuples and mappings, their tensors there and apart from any graph; the rest as it is."""
    return tree_map(lambda value: value.detach().to(device) if isinstance(value, Tensor) else value, values)
