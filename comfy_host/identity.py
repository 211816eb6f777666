"""What tells one model, and one run on it, from another: family, prediction, hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
import comfyui_version
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from .acting_stack import acting_on
from .model_caches import COMPILED
from .model_state import KEY

COMFYUI_VERSION = comfyui_version.__version__
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)
_NETWORK = "diffusion_model."  # the part of a diffusion model whose weights are learned


def family(patcher: ModelPatcher) -> str:
    """Return the base model's family by ComfyUI's name, such as "SDXL"."""
    return type(patcher.model.model_config).__name__


def prediction_of(patcher: ModelPatcher) -> str:
    """Return what the model's network predicts, by ComfyUI's names, such as "EPS" or "V_PREDICTION"."""
    kinds = type(patcher.get_model_object("model_sampling")).__mro__
    names = (kind.__name__ for kind in kinds if kind.__module__ == comfy.model_sampling.__name__)
    return ", ".join(name for name in names if not name.startswith("ModelSampling"))


def is_flow(sampling: Any) -> bool:
    """Return True if a model, by its `model_sampling`, is a flow model."""
    return isinstance(sampling, comfy.model_sampling.CONST)


def weights_hash(patcher: ModelPatcher) -> str:
    """Return a short hash of a model's own weights: names, shapes and the first values of every tensor.

    Patches (LoRA, say) do not count, however many of them ComfyUI has merged into the weights by now. Of a diffusion
    model only the network counts: nodes that set the sampling's shift replace the tables of sigmas beside it.
    """
    digest = hashlib.sha256()
    within = _NETWORK if hasattr(patcher.model, "diffusion_model") else ""
    for name, tensor in sorted(_own_weights(patcher).items()):
        if not name.startswith(within):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point():
            digest.update(tensor.flatten()[:32].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _own_weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Return the weights by name, as the model's file has them; of patched ones, the backup."""
    weights = patcher.model.state_dict()
    for name, kept in patcher.backup.items():
        # a quantised weight lies in a state dict in several parts
        own = kept.weight.state_dict(name) if hasattr(kept.weight, "state_dict") else {name: kept.weight}
        weights |= own
    return weights


def modifications_of(patcher: ModelPatcher) -> list[Any]:
    """Return what acts on the model beside its weights, to tell runs apart: sliders, patches, nodes' wrappers."""
    acting = acting_on(patcher)
    sliders = (
        [(p.slider.content_hash, p.strength, repr(p.gates), p.cond_or_uncond) for p in acting.stack] if acting else []
    )
    patches = {key: [_plain(patch) for patch in given] for key, given in patcher.patches.items()}
    wrappers = {  # but for the sliders' wrapper, told above, and torch.compile's, which changes no result
        (kind, key): given
        for kind, by_key in patcher.wrappers.items()
        for key, given in by_key.items()
        if given and key not in (KEY, COMPILED)
    }
    options = patcher.model_options.get("transformer_options", {})
    return [sliders, patches, patcher.object_patches, options, wrappers]


def _plain(patch: tuple) -> list[Any]:
    """Return one of ComfyUI's patches, with the tensors of an adapter beside its class."""
    return [(type(part), part.weights) if isinstance(part, WeightAdapterBase) else part for part in patch]


def digest_of(*values: Any) -> str:
    """Return a short hash of plain values and tensors, and of lists and mappings of these.

    Of anything else, such as a function, the name counts: its repr may be another in the next session.
    """
    digest = hashlib.sha256()
    _tell(digest, values)
    return digest.hexdigest()[:16]


def _tell(digest: Any, value: Any) -> None:
    """Update the digest with a value; lengths and shapes come first, so that different values never read alike."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {tuple(value.shape)};".encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    elif isinstance(value, Mapping):
        _tell(digest, [(key, value[key]) for key in sorted(value, key=repr)])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} of;".encode())
        for each in value:
            _tell(digest, each)
    elif value is None or isinstance(value, _PLAIN):
        digest.update(f"{value!r};".encode())
    else:
        # a node may have made the class: what sets it apart is what it is derived from
        classes = value.__mro__ if isinstance(value, type) else type(value).__mro__
        names = [getattr(value, "__qualname__", ""), *(each.__qualname__ for each in classes)]
        digest.update(f"{names};".encode())
