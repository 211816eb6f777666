"""Plain differences of a layer's parameters, as full-rank trainings and LyCORIS' "full" and "norm" write them.

W' = W + s * diff,    b' = b + s * diff_b,    and of a norm  w' = w + s * w_norm,    b' = b + s * b_norm
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .kind import BIAS, DIFF, AdapterKind, Parts, Shape, require_fit

NORM, NORM_BIAS = "w_norm", "b_norm"


class Difference(AdapterKind):
    name = "difference"
    own_parts: tuple[str, ...] = (DIFF,)

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        if NORM_BIAS in parts and NORM not in parts:
            parts = {BIAS: parts[NORM_BIAS]}  # ComfyUI's loader reads b_norm beside w_norm only
        for part in (BIAS, NORM, NORM_BIAS):
            require_fit(layer, part not in parts or parts[part].ndim == 1, "difference", parts)
        if {BIAS, DIFF} <= parts.keys():
            shape = parts[DIFF].shape
            outputs = shape[:2] if len(shape) > 2 else shape[:1]  # those of a transposed convolution come second
            require_fit(layer, parts[BIAS].shape[0] in outputs, "difference", parts)
        return dict(parts)

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        return next((shapes[part] for part in (DIFF, NORM) if part in shapes), None)

    def fits(self, delta: Shape, weight: Shape) -> bool:
        return delta == weight  # ComfyUI reshapes products only

    def scaled(self, parts: Parts, factor: float) -> dict[str, Tensor] | None:
        return {part: t.float() * factor if part in (DIFF, NORM, NORM_BIAS) else t for part, t in parts.items()}


class Norm(Difference):
    name = "norm"
    own_parts = (NORM, NORM_BIAS)
    takes_bias = False


class Bias(Difference):
    name = "bias"
    own_parts = (BIAS,)

    def described(self, parts: Parts) -> str:
        return self.name
