"""Layer names as kohya's scripts write them, and A1111, Forge and most sites read them.

"lora_unet_" or "lora_te_" and the module's path, underscores for dots: "lora_unet_mid_block_attentions_0_proj_in".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNET, TRANSFORMER = "lora_unet_", "lora_transformer_"
_DOUBLE, _SINGLE = "transformer_blocks_", "single_transformer_blocks_"
_FLUX_PARTS = (_DOUBLE, _SINGLE, "norm_out_linear", "proj_out", "x_embedder", "context_embedder", "time_text_embed_")
_FLUX_BLOCKS = 19
# What in a block's name tells Qwen-Image and LTX from Flux
_NOT_FLUX = ("_img_mlp", "_txt_mlp", "_img_mod", "_txt_mod", "_attn1_", "_attn2_", "_cross_attn_")
KOHYA_ENCODER = re.compile(r"lora_te(\d?)_(.+)")
ENCODER = re.compile(r"text_encoder(?:_(\d))?\.(.+)")


def from_kohya(name: str, is_flux: bool) -> str:
    """Return ComfyUI's name of a layer that kohya's scripts call "lora_unet_...".

    is_flux: True if the file's names are diffusers' names of Flux, see `are_of_diffusers_flux`.
    """
    rest = name.removeprefix(UNET)
    if is_flux and rest.startswith(_FLUX_PARTS):
        return TRANSFORMER + rest
    return UNET + rest.removeprefix("_")  # two underscores: Wan Fun


def are_of_diffusers_flux(names: Sequence[str]) -> bool:
    """Return True if `lora_unet_transformer_blocks_...` in a file means diffusers' Flux, as the paper's code has it.

    The same names mean Qwen-Image and LTX in kohya's layout, and these ComfyUI's loader knows.
    """
    if any(name.startswith(UNET + _SINGLE) for name in names):
        return True
    rests = [name.removeprefix(UNET + _DOUBLE) for name in names if name.startswith(UNET + _DOUBLE)]
    if not rests or any(mark in rest for rest in rests for mark in _NOT_FLUX):
        return False
    numbers = [int(number[0]) for rest in rests if (number := re.match(r"\d+", rest))]
    return max(numbers, default=_FLUX_BLOCKS) < _FLUX_BLOCKS


def to_kohya(name: str) -> str | None:
    """Return kohya's name of a diffusion model's layer by its name alone; None where that takes the model."""
    if name.startswith("diffusion_model.") and ".attention.to_" not in name:  # these are parts of a joint weight
        return UNET + name.removeprefix("diffusion_model.").replace(".", "_")
    return name if name.startswith(UNET) else None


def encoder_in_kohya(name: str, several: bool) -> str | None:
    """Return kohya's name of a text encoder's layer; None if it is not known.

    several: True if the family has more than one text encoder, so that the first is numbered too. A T5 beside others
    is the third, also where diffusers counts it as the second, as in Flux.
    """
    match = KOHYA_ENCODER.fullmatch(name) or ENCODER.fullmatch(name)
    if match is None:
        return None
    layer = match[2].replace(".", "_")
    t5 = layer.startswith("encoder_block_")
    number = match[1] or ("1" if several or t5 else "")
    return f"lora_te{'3' if t5 and number == '2' else number}_{layer}"
