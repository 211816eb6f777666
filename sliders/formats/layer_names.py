"""The names of layers in slider files, and what ComfyUI's LoRA loader calls the same layers.

Pure functions on names. A model is not needed to read a file: its names taken together tell what they mean. Names as
kohya's scripts write them are read in `kohya_names`, all others in `diffusers_names`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..slider import TEXT_ENCODER_PREFIXES
from .diffusers_names import PEFT, TRANSFORMER_PARTS, from_diffusers
from .kohya_names import UNET, are_of_diffusers_flux, from_kohya


def comfyui_names(names: Iterable[str], encoder: str = "text_encoder") -> dict[str, str]:
    """Return, for each layer name of one file, ComfyUI's name of the layer; the name itself if there is no other.

    encoder: which text encoder a PEFT file for a text encoder is of, "text_encoder", "text_encoder_2", ...
    Several names may get the same one; the caller decides what that means.
    """
    names = tuple(names)
    peft = (name.removeprefix("unet.").removeprefix(PEFT) for name in names if PEFT in name)
    is_transformer = any(name.startswith(TRANSFORMER_PARTS) for name in peft)
    is_flux = are_of_diffusers_flux(names)
    return {
        name: from_kohya(name, is_flux) if name.startswith(UNET) else from_diffusers(name, is_transformer, encoder)
        for name in names
    }


def is_text_layer(name: str) -> bool:
    """Return True if a layer name is of a text encoder."""
    return name.startswith(TEXT_ENCODER_PREFIXES)


def listed(names: Sequence[str], most: int = 50) -> str:
    """Join names with commas for a message; if there are very many, say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name:.200}" for name in names[:most]) + more
