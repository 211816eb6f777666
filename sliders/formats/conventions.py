"""The naming conventions that slider files are written in for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters.kind import DORA, PEFT_MAGNITUDE
from ..changes import Change, kind_of
from .conversion import WeightSlice
from .diffusers_names import encoder_in_diffusers, to_diffusers, without_processor
from .keys import is_low_rank, layer_tensors
from .kohya_names import encoder_in_kohya, to_kohya
from .layer_names import is_text_layer

AS_IT_IS, KOHYA, DIFFUSERS, NATIVE = CONVENTIONS = ("as it is", "kohya", "diffusers", "diffusion_model.")
_SINGLE = ".single_transformer_blocks."
# Flux 1 and Flux 2 name the same weights differently in diffusers, and ComfyUI knows both names for both
_OF_FLUX_2 = ("attn.to_qkv_mlp_proj", "attn.to_out", "ff.linear_in", "ff.linear_out")
_OF_FLUX_1 = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")


def name_in(name: str, convention: str, several_encoders: bool = False) -> str | None:
    """Return a layer's name in a convention by its name alone; None where that takes the model.

    several_encoders: True if the model has more than one text encoder.
    """
    if convention == AS_IT_IS:
        return name
    if is_text_layer(name):
        return encoder_in_kohya(name, several_encoders) if convention == KOHYA else encoder_in_diffusers(name)
    if convention == NATIVE:
        return name if name.startswith("diffusion_model.") else None
    return to_kohya(name) if convention == KOHYA else to_diffusers(name)


def names_by_key(
    key_map: Mapping[str, Any], convention: str, flux_2: bool = False
) -> dict[str, dict[WeightSlice, str]]:
    """Return a convention's names of the weights of a model, by their keys in the state dict, and of slices of them.

    key_map: ComfyUI's, from layer names to weights. flux_2: True if the model is of that family.
    """
    names: dict[str, dict[WeightSlice, str]] = {}
    for name, target in key_map.items():
        new = _form_of(name, convention, flux_2)
        if new is None:
            continue
        place = WeightSlice.of(target)
        own = names.setdefault(place.key, {})
        # ComfyUI lists a weight's own name first, and the diffusers form of an underscored name last
        if convention == KOHYA or place not in own:
            own[place] = new
    return names


def _form_of(name: str, convention: str, flux_2: bool) -> str | None:
    if "class_embedding" in name:  # ComfyUI calls the added embedding of SDXL so too
        return None
    if convention == KOHYA:  # kohya's scripts, and diffusers of their files, name it label_emb
        return name if name.startswith("lora_unet_") and "add_embedding" not in name else None
    if convention == NATIVE:
        return name if name.startswith("diffusion_model.") else None
    if name.startswith("unet.") and ".base_model." not in name:
        return without_processor(name)
    if not name.startswith("transformer."):
        return None
    if flux_2:
        other = name.endswith((".ff.net.0.proj", ".ff.net.2")) or (_SINGLE in name and name.endswith(_OF_FLUX_1))
    else:
        other = name.endswith(_OF_FLUX_2) and (_SINGLE in name or "linear_" in name)
    return None if other else name


def tensors_in(convention: str, name: str, change: Change, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a layer's tensors by the keys of a convention's files.

    kohya states an alpha equal to the rank. diffusers reads a missing alpha as one, and a stated one in its own
    layout not at all, so there is none.
    Raises ValueError if the change is not of a kind that readers of the convention know, or would be another change
    to them, and as `keys.layer_tensors` does.
    """
    if convention == DIFFUSERS:
        if not is_low_rank(change):
            raise ValueError(f"Layer {name} is a {kind_of(change)} change; diffusers reads low-rank products only.")
        if DORA in change.parts:
            raise ValueError(
                f"Layer {name} is a DoRA whose magnitudes ComfyUI takes otherwise than diffusers does (dora_scale); "
                "there it would be another change."
            )
        return layer_tensors(name, change, dtype, "lora_A", with_alpha=False)
    if convention == KOHYA and PEFT_MAGNITUDE in change.parts:
        raise ValueError(
            f"Layer {name} is a DoRA with PEFT's magnitudes, which tools that read kohya's names would leave out."
        )
    spelling = {KOHYA: "lora_down", NATIVE: "lora_A"}.get(convention, "")
    return layer_tensors(name, change, dtype, spelling)
