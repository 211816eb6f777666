"""GLoRA: a low-rank change, part of which depends on the weight (arXiv 2306.07967).

    W' = W + s * (alpha / rank) * (b1 @ b2 + W a1 @ a2)

Files have the factors in one of two layouts; `rank` and `_is_older` tell them apart by ComfyUI's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor

from .kind import ALPHA, DORA, AdapterKind, Parts, Shape, require, require_fit

_FACTORS = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


class GLoRA(AdapterKind):
    name = "GLoRA"
    own_parts = _FACTORS
    further_parts = (ALPHA, DORA)
    relative = True

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        require(layer, parts, _FACTORS, "GLoRA")
        require_fit(layer, self.alpha_rank(parts) > 0, "GLoRA", parts)
        return dict(parts)

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        b1, b2 = shapes["b1.weight"], shapes["b2.weight"]
        return (b2[0], prod(b1[1:])) if _is_older(shapes, weight) else (b1[0], prod(b2[1:]))

    def takes(self, shapes: Mapping[str, Shape], weight: Shape) -> bool:
        a1, a2 = shapes["a1.weight"], shapes["a2.weight"]
        ends = (a2[0], prod(a1[1:])) if _is_older(shapes, weight) else (a1[0], prod(a2[1:]))
        return ends in ((prod(weight[1:]),) * 2, weight[1:2] * 2)

    def alpha_rank(self, parts: Parts) -> int:
        """Return the rank in either layout, or 0 if the parts do not fit each other."""
        if any(parts[part].ndim < 2 for part in _FACTORS):
            return 0
        a1, a2, b1, b2 = (parts[part].shape[:2] for part in _FACTORS)
        ranks = []
        if b2[1] == b1[0] == a1[0] == a2[1] and a1[1] == a2[0]:
            ranks.append(a1[0])
        if b2[0] == b1[1] == a1[1] == a2[0] and a1[0] == a2[1]:
            ranks.append(a2[0])
        return min(ranks, default=0)  # for square weights both fit; the rank is below the size


def _is_older(shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Return True if the factors are in the older of the two layouts, by ComfyUI's rule."""
    a1, a2, b1, b2 = (shapes[part][:2] for part in _FACTORS)
    older = b2[1] == b1[0] == a1[0] == a2[1]
    newer = b2[0] == b1[1] == a1[1] == a2[0]
    return older and (not newer or a2[0] == weight[0] == weight[1])
