"""What diffusers' names of a model's layers stand for, where ComfyUI's LoRA loader does not know them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import comfy.utils
from comfy.model_base import BaseModel

from ..sliders.equation.layer_kinds import weight_shape
from .diffusers_families import FAMILIES

_NETWORK = "diffusion_model."


def diffusers_layers(base_model: BaseModel) -> dict[str, Any]:
    """Return what diffusers' names of a model's layers stand for, in the form of ComfyUI's key maps.

    Names begin with "transformer.". Empty for models of which ComfyUI knows all, or nobody any.
    """
    family = next((family for family in FAMILIES if isinstance(base_model, family.classes)), None)
    layers: dict[str, Any] = {}
    for key in base_model.state_dict() if family else ():
        path = key.removeprefix(_NETWORK).removesuffix(".weight")
        if family and key == f"{_NETWORK}{path}.weight":
            found = ((re.fullmatch(pattern, path), names) for pattern, names in family.names.items())
            names = next(([match.expand(name) for name in names] for match, names in found if match), [])
            parts = [0]
            if len(names) > 1:
                rows, columns = weight_shape(base_model.get_submodule(f"{_NETWORK}{path}"), path)
                parts = family.rows(rows, columns, len(names))
            for several, place in zip(names, _places(key, parts), strict=False):
                layers |= {
                    f"transformer.{name.removeprefix('~')}": _swapped(name, place) for name in several.split("|")
                }
    return layers


def _places(key: str, parts: list[int]) -> Iterator[Any]:
    """Yield the consecutive parts of a weight, of so many rows each; the weight itself if it is one part."""
    starts = accumulate(parts, initial=0)
    yield from [key] if len(parts) == 1 else [(key, (0, start, rows)) for start, rows in zip(starts, parts)]


def _swapped(name: str, place: Any) -> Any:
    """Return a place for a name, with its halves the other way round if the name says so."""
    return (place, None, comfy.utils.swap_scale_shift) if name.startswith("~") else place
