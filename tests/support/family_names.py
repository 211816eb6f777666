"""Every name that the stock loader knows for a model's layers, and files that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.match import Match, layer_names
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.layer_kinds import can_act_on, weight_shape
from torch import Tensor

# How layer names begin in ComfyUI's key maps
PREFIXES = (
    "lora_prior_unet_",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "unet.base_model.model.",
    "base_model.model.",
    "unet.",
    "transformer.",
    "diffusion_model.",
    "",
)


def names_by_style(model: ModelPatcher) -> dict[tuple[str, int], dict[str, Any]]:
    """ComfyUI's names for layers with what they stand for, by how they begin.

    Several names for one place that begin alike are in styles of their own: ("lora_unet_", 1), ("lora_unet_", 2).
    """
    styles: dict[tuple[str, int], dict[str, Any]] = {}
    taken = set()
    state = model.model.state_dict()
    for name, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if not stands_for_a_layer(model, state, target):
            continue
        prefix = next(p for p in PREFIXES if name.startswith(p))
        number = next(n for n in count(1) if (prefix, n, target) not in taken)
        taken.add((prefix, number, target))
        styles.setdefault((prefix, number), {})[name] = target
    return styles


def names_beyond(styles: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Names in files in the wild that the stock loader does not know, with one that it knows, by how they begin.

    styles: of `names_by_style`.
    """
    known = {name for names in styles.values() for name in names}
    unet, others, own, underscored = (
        styles.get((prefix, 1), {}) for prefix in ("unet.", "transformer.", "diffusion_model.", "lora_transformer_")
    )
    diffusers = {_as_in_diffusers(name).removeprefix("unet."): name for name in unet}
    diffusers = diffusers or {name.removeprefix("transformer."): name for name in others}
    flux = any("single_transformer_blocks" in name for name in underscored)
    found = {
        "unet.": {f"unet.{name}": of for name, of in diffusers.items() if unet},
        "base_model.model. and diffusers' names": {f"base_model.model.{name}": of for name, of in diffusers.items()},
        "base_model.model. and the model's names": {
            f"base_model.model.{name.removeprefix('diffusion_model.')}": name for name in own
        },
        "model.diffusion_model.": {f"model.{name}": name for name in own},
        "lora_unet_ as the public Flux code": {
            name.replace("lora_transformer_", "lora_unet_"): name for name in underscored if flux
        },
    }
    beyond = {how: {name: of for name, of in names.items() if name not in known} for how, names in found.items()}
    return {how: names for how, names in beyond.items() if names}


def _as_in_diffusers(name: str) -> str:
    """ComfyUI's only names with "unet." are those of diffusers' attention processors of old."""
    plain = name.replace(".processor.", ".")
    return f"{plain}.0" if plain != name and plain.endswith(".to_out") else plain


def stands_for_a_layer(model: ModelPatcher, state: Mapping[str, Tensor], target: Any) -> bool:
    """Returns True if ComfyUI can apply a low-rank change there.

    For queries, keys and values of a joint weight ComfyUI takes each to be of the model's width; where that is
    not so, as in Lumina 2, its own loader fails.
    """
    key, offset = (*target, None)[:2] if isinstance(target, tuple) else (target, None)
    path, _, parameter = key.rpartition(".")
    if parameter != "weight" or key not in state:
        return False
    module = model.model.get_submodule(path)
    if not can_act_on(module):
        return False
    return offset is None or offset[1] + offset[2] <= weight_shape(module, path)[offset[0]]


def file_named(model: ModelPatcher, style: tuple[str, int], targets: Mapping[str, Any]) -> dict[str, Tensor]:
    """A random slider's tensors by these names, as the trainers who name layers so write them."""
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, target in targets.items():
        key, offset = (*target, None)[:2] if isinstance(target, tuple) else (target, None)
        path = key.removesuffix(".weight")
        shape = list(weight_shape(model.model.get_submodule(path), path))
        if offset is not None:
            shape[offset[0]] = offset[2]
        fresh = LowRank.fresh(tuple(shape), 2, generator)
        up = torch.empty_like(fresh.up).normal_(0.0, 0.3, generator=generator)
        if style[0].startswith(("lora_", "lycoris_")):
            tensors |= {f"{name}.lora_down.weight": fresh.down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
        else:
            tensors |= {f"{name}.lora_A.weight": fresh.down, f"{name}.lora_B.weight": up}
    return tensors


def respelled(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The layers of a file that have a name here, under these names. names: new name -> the one in the file."""
    return {
        f"{new}{key.removeprefix(old)}": tensor
        for new, old in names.items()
        for key, tensor in ((k, t) for k, t in tensors.items() if k.startswith(f"{old}."))
    }


def same_changes(one: Match, other: Match) -> bool:
    """Returns True if both change the same modules by the same numbers."""
    if one.unmatched or one.layers.keys() != other.layers.keys():
        return False
    pairs = ((sorted_parts(one.layers[path]), sorted_parts(other.layers[path])) for path in one.layers)
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs)


def sorted_parts(changes: tuple) -> list[Tensor]:
    """Tensors of the changes of one module, in an order that does not depend on the file's."""
    tensors = [tensor for change in changes for tensor in (change.down, change.up)]
    return sorted(tensors, key=lambda t: (t.shape, t.double().sum().item()))


def layers_never_called(model: ModelPatcher, run: Callable[[ModelPatcher], object]) -> dict[str, str]:
    """The layers whose forward does not run when the model does, by path, with their names."""
    names, called = layer_names(model), set()
    hooks = [
        model.model.get_submodule(path).register_forward_hook(lambda *_, path=path: called.add(path))
        for path in names
    ]
    run(model)
    for hook in hooks:
        hook.remove()
    return {path: name for path, name in names.items() if path not in called}
