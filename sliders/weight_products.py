"""How alike the weight changes of sliders are: Frobenius inner products and cosines, of low-rank products in factors.

    <B1 A1, B2 A2> = tr((B1 A1)^T B2 A2) = sum of (B1^T B2) * (A1 A2^T)

elementwise, for B (out, rank) and A (rank, in); of a convolution A is (rank, in * kernel). With the sliders' B side
by side and their A one below the other, one such product of a layer holds those of all pairs. The dense change,
out x in, is not formed, unless one of the sliders has a plain difference there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters.difference import NORM, NORM_BIAS
from .adapters.kind import BIAS, DIFF, DOWN, UP
from .adapters.lora import alpha_scale
from .changes import Change, LowRank

Layers = Mapping[Any, Change]  # of one slider, by what tells the layers of a model apart
_KNOWN = ("LoRA", "difference", "norm", "bias")  # the adapters that are a product or a difference


@dataclass(frozen=True)
class WeightProducts:
    """The inner products of the weight changes of K sliders at strength 1, over all layers.

    gram: (K, K), float64; a layer that only one of two sliders changes counts as zero. left_out: for each slider the
    layers that do not count: those that are neither low-rank products nor plain differences (LoHa, DoRA, OFT, ...).
    """

    gram: Tensor
    left_out: tuple[tuple[Any, ...], ...]

    @property
    def norms(self) -> Tensor:
        """The Frobenius norm of each slider's change, (K,)."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """The cosines, (K, K) in [-1, 1]; 0 for a slider that changes nothing."""
        scale = self.norms.clamp(min=torch.finfo(torch.float64).tiny)
        return (self.gram / scale[:, None] / scale).clamp(-1, 1)


def weight_products(sliders: Sequence[Layers]) -> WeightProducts:
    """Work out the inner products of all pairs of sliders.

    sliders: the layers of each. Raises ValueError, naming the layer, if two sliders change weights of different
    shapes under one name.
    """
    by_parameter: dict[tuple[Hashable, str], dict[int, LowRank | Tensor]] = {}
    left_out: list[tuple[Any, ...]] = []
    for index, layers in enumerate(sliders):
        found = {name: _differences(change) for name, change in layers.items()}
        left_out.append(tuple(name for name, parts in found.items() if parts is None))
        for name, parts in found.items():
            for parameter, difference in (parts or {}).items():
                by_parameter.setdefault((name, parameter), {})[index] = difference
    gram = torch.zeros(len(sliders), len(sliders), dtype=torch.float64)
    for (name, _), differences in by_parameter.items():
        owners = torch.tensor(list(differences))
        gram[owners[:, None], owners] += _gram(name, list(differences.values()))
    return WeightProducts(gram, tuple(left_out))


def _differences(change: Change) -> dict[str, LowRank | Tensor] | None:
    """What a change adds to each parameter of its layer; None if it is of another kind."""
    if isinstance(change, LowRank):
        return {"weight": change}
    if change.has_magnitudes or change.kind.name not in _KNOWN:
        return None
    parts, scale = change.parts, change.scale
    found: dict[str, LowRank | Tensor] = {
        parameter: parts[name].double() * scale
        for name, parameter in ((DIFF, "weight"), (NORM, "weight"), (NORM_BIAS, "bias"), (BIAS, "bias"))
        if name in parts
    }
    if DOWN in parts:
        found["weight"] = LowRank(parts[DOWN], parts[UP].double() * (scale * alpha_scale(parts)))
    return found


def _gram(name: Hashable, differences: Sequence[LowRank | Tensor]) -> Tensor:
    """The inner products of n differences of one parameter, (n, n)."""
    shapes = [_shape(each) for each in differences]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"Layer {name}: sliders change weights of shapes {' and '.join(map(str, dict.fromkeys(shapes)))} there. "
            "They were made for different models."
        )
    products = [each for each in differences if isinstance(each, LowRank)]
    if len(products) == len(differences):
        return _gram_of_products(products)
    flat = torch.stack([_dense(each).flatten() for each in differences])  # (n, out * in)
    return flat @ flat.T


def _gram_of_products(changes: Sequence[LowRank]) -> Tensor:
    ups = torch.cat([change.up.detach().flatten(1).double().cpu() for change in changes], dim=1)  # (out, ranks)
    downs = torch.cat([change.down.detach().flatten(1).double().cpu() for change in changes])  # (ranks, in)
    ranks = torch.tensor([change.rank for change in changes])
    owned = F.one_hot(torch.arange(len(changes)).repeat_interleave(ranks), len(changes)).double()  # (ranks, n)
    return owned.T @ ((ups.T @ ups) * (downs @ downs.T)) @ owned


def _dense(difference: LowRank | Tensor) -> Tensor:
    if isinstance(difference, LowRank):
        return difference.up.detach().flatten(1).double().cpu() @ difference.down.detach().flatten(1).double().cpu()
    return difference.cpu()


def _shape(difference: LowRank | Tensor) -> tuple[int, int]:
    """(out, in): a linear layer and a 1x1 convolution hold the same numbers, and files use either form for both."""
    if isinstance(difference, LowRank):
        return difference.up.shape[0], difference.down[0].numel()
    return difference.shape[0], difference[0].numel()
