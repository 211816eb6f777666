"""OFT and BOFT: the weight's outputs are turned by orthogonal matrices.

    OFT:  W' = R W,          R of blocks R_i = (I + Q_i) (I - Q_i)^-1, Q_i skew-symmetric   (arXiv 2306.07280)
    BOFT: W' = R_m ... R_1 W, each R_j of blocks over a butterfly's permutation             (arXiv 2311.06243)

`oft_blocks` is (blocks, size, size) for OFT, (stages, blocks, size, size) for BOFT.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .kind import ALPHA, AdapterKind, Parts, Shape, require_fit

_BLOCKS, _RESCALE = "oft_blocks", "rescale"


class OFT(AdapterKind):
    name = "OFT"
    own_parts = (_BLOCKS,)
    further_parts = (_RESCALE, ALPHA)
    relative = True
    linear = False  # ComfyUI applies the strength to an OFT twice

    def checked(self, layer: str, parts: Parts) -> dict[str, Tensor]:
        parts, blocks = dict(parts), parts[_BLOCKS]
        require_fit(layer, blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2], "OFT", parts)
        if _RESCALE in parts and bool((parts[_RESCALE] == 1).all()):
            del parts[_RESCALE]
        if _RESCALE in parts and blocks.ndim == 3:
            raise ValueError(
                f"layer {layer}: an OFT change with a rescale is not supported; ComfyUI leaves the rescale out."
            )
        if blocks.ndim == 4 and ALPHA not in parts:
            parts[ALPHA] = torch.tensor(0.0)  # no constraint: ComfyUI's loader needs to be told
        return parts

    def delta_shape(self, shapes: Mapping[str, Shape], weight: Shape) -> Shape | None:
        *_, number, size, _ = shapes[_BLOCKS]
        return (number * size, *weight[1:])  # outputs are turned, whatever the inputs

    def takes(self, shapes: Mapping[str, Shape], weight: Shape) -> bool:
        if len(shapes[_BLOCKS]) != 4:
            return True
        stages, _, size, _ = shapes[_BLOCKS]
        return size % 2 == 0 and weight[0] % (2 ** (stages - 1) * size) == 0  # or its butterflies end halfway

    def scaled(self, parts: Parts, factor: float) -> dict[str, Tensor] | None:
        return None

    def described(self, parts: Parts) -> str:
        return "BOFT" if parts[_BLOCKS].ndim == 4 else super().described(parts)
