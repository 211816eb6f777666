"""LoHa: the elementwise product of two low-rank products (arXiv 2108.06098).

    W' = W + s * (alpha / rank) * (w1_a @ w1_b) * (w2_a @ w2_b)

In a convolution with cores (Tucker's form), w1 = t1 x w1_a x w1_b, with w1_a (rank, out) and w1_b (rank, in).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .kind import ALPHA, DORA, AdapterKind, Parts, Shape, require, require_fit

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


class LoHa(AdapterKind):
    name = "LoHa"
    own_parts = _FACTORS
    further_parts = (*_CORES, ALPHA, DORA)

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        require(layer, parts, _FACTORS, "LoHa")
        w1a, w1b, w2a, w2b = (parts[part] for part in _FACTORS)
        fits = all(t.ndim == 2 for t in (w1a, w1b, w2a, w2b))
        if any(core in parts for core in _CORES):
            require(layer, parts, _CORES, "a LoHa convolution")
            t1, t2 = (parts[core] for core in _CORES)
            fits = fits and t1.ndim == t2.ndim == 4 and t1.shape[2:] == t2.shape[2:]
            fits = fits and t1.shape[:2] == (w1a.shape[0], w1b.shape[0])
            fits = fits and t2.shape[:2] == (w2a.shape[0], w2b.shape[0])
            fits = fits and w1a.shape[1] == w2a.shape[1] and w1b.shape[1] == w2b.shape[1]
        else:
            fits = fits and w1a.shape[1] == w1b.shape[0] and w2a.shape[1] == w2b.shape[0]
            fits = fits and w1a.shape[0] == w2a.shape[0] and w1b.shape[1] == w2b.shape[1]
        require_fit(layer, fits, "LoHa", parts)
        return dict(parts)

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        if "hada_t1" in shapes:
            return (shapes["hada_w1_a"][1], shapes["hada_w1_b"][1], *shapes["hada_t1"][2:])
        return (shapes["hada_w1_a"][0], shapes["hada_w1_b"][1])

    def rank(self, parts: Parts) -> int:
        return parts["hada_w1_b"].shape[0] if "hada_w1_b" in parts else 0
