"""LoKr: a Kronecker product of two matrices, each whole or a low-rank product (LyCORIS, arXiv 2309.14859).

    W' = W + s * (alpha / rank) * kron(w1, w2),    w1 = w1_a @ w1_b,    w2 = w2_a @ w2_b

In a convolution w2 alone has the kernel; with a core (Tucker's form), w2 = t2 x w2_a x w2_b. Alpha takes no effect
where both factors are given whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .kind import ALPHA, DORA, AdapterKind, Parts, Shape, require, require_fit

_PRODUCTS = {"lokr_w1": ("lokr_w1_a", "lokr_w1_b"), "lokr_w2": ("lokr_w2_a", "lokr_w2_b")}
_CORE = "lokr_t2"


class LoKr(AdapterKind):
    name = "LoKr"
    own_parts = (*_PRODUCTS, *_PRODUCTS["lokr_w1"], *_PRODUCTS["lokr_w2"])
    further_parts = (_CORE, ALPHA, DORA)

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        for factor, (a, b) in _PRODUCTS.items():
            halves = a in parts or b in parts
            if factor in parts:
                require_fit(layer, not halves and 2 <= parts[factor].ndim <= 5, "LoKr", parts)
                continue
            require(layer, parts, (a, b) if halves else (factor,), "LoKr")
            require_fit(layer, parts[a].ndim == parts[b].ndim == 2, "LoKr", parts)
            if factor == "lokr_w2" and _CORE in parts:
                core = parts[_CORE]
                fits = core.ndim == 4 and core.shape[:2] == (parts[a].shape[0], parts[b].shape[0])
            else:
                fits = parts[a].shape[1] == parts[b].shape[0]
            require_fit(layer, fits, "LoKr", parts)
        require_fit(layer, _CORE not in parts or "lokr_w2_a" in parts, "LoKr", parts)
        return dict(parts)

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        first, second = _factor(shapes, "lokr_w1"), _factor(shapes, "lokr_w2")
        # As ComfyUI forms the Kronecker product: a kernel is the second factor's alone
        if len(first) == 2 and len(second) == 4:
            first = (*first, 1, 1)
        length = max(len(first), len(second))
        first, second = ((1,) * (length - len(shape)) + shape for shape in (first, second))
        return tuple(a * b for a, b in zip(first, second))

    def rank(self, parts: Parts) -> int:
        return next((parts[part].shape[0] for part in ("lokr_w1_b", "lokr_w2_b") if part in parts), 0)

    def alpha_rank(self, parts: Parts) -> int:
        return next((parts[part].shape[0] for part in ("lokr_w2_b", "lokr_w1_b") if part in parts), 0)

    def scaled(self, parts: Parts, factor: float) -> dict[str, Tensor] | None:
        if self.alpha_rank(parts):
            return super().scaled(parts, factor)
        return {**parts, "lokr_w1": parts["lokr_w1"].float() * factor}


def _factor(shapes: Mapping[str, Shape], factor: str) -> Shape:
    if factor in shapes:
        return shapes[factor]
    a, b = (shapes[part] for part in _PRODUCTS[factor])
    if factor == "lokr_w2" and _CORE in shapes:
        return (a[1], b[1], *shapes[_CORE][2:])
    return (a[0], b[1])
