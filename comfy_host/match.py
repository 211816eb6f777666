"""Matches a slider's layers with a model's modules, by ComfyUI's own names for the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..sliders.adapters.kind import BIAS, DOWN, UP
from ..sliders.adapters.shape_checks import check_bias, check_fits, part_shape
from ..sliders.changes import Adapter, Change, LowRank
from ..sliders.equation.layer_kinds import can_act_on, weight_shape
from ..sliders.equation.parameters import own_parameter
from ..sliders.formats.layer_names import known_name, listed
from ..sliders.slider import Slider
from .model_state import ModelState, state_of
from .weight_adapters import ComfyPatch, tensors_by_key

log = logging.getLogger(__name__)

_WEIGHT = ".weight"
_BIASES = (BIAS, "b_norm")
Target = str | tuple  # an entry of ComfyUI's key maps: a key, or (key, offset[, function])


@dataclass(frozen=True)
class Match:
    """Which of a slider's layers a model has.

    layers: the changes by the path of the module that they act on, shaped for it.
    unmatched: the names of the slider's layers that the model has not. total: how many layers the slider has
        for the diffusion model.
    """

    layers: Mapping[str, tuple[LowRank | ComfyPatch, ...]]
    unmatched: tuple[str, ...]
    total: int

    @property
    def matched(self) -> int:
        return self.total - len(self.unmatched)

    @property
    def relative(self) -> bool:
        """True if any of the changes depends on the weight that it changes."""
        return any(isinstance(c, ComfyPatch) and c.relative for changes in self.layers.values() for c in changes)


def match_slider(model: ModelPatcher, slider: Slider) -> Match:
    """Find a slider's layers in a model, see `layers_of`."""
    return layers_of(slider, model.model, state_of(model.model))


def layers_of(slider: Slider, base_model: BaseModel, state: ModelState) -> Match:
    """Find a slider's layers in a model by ComfyUI's names for them. state: what sliders keep for the model.

    A layer that changes only part of a fused weight, such as the queries of a joint query-key-value layer, is
    widened to the whole of it with zeros.
    Raises ValueError if no layer meant for the diffusion model is found, or one does not fit; logs a warning,
    with the numbers, if only some are found.
    """
    key_map = state.key_map = state.key_map or comfy.lora.model_lora_keys_unet(base_model, {})
    return state.match(slider.content_hash, lambda: _found(slider, base_model, key_map))


def _found(slider: Slider, base_model: BaseModel, key_map: Mapping[str, Any]) -> Match:
    layers = slider.model_layers
    found: dict[str, tuple[LowRank | ComfyPatch, ...]] = {}
    unmatched = []
    for name in layers:
        known = known_name(name, key_map)
        if known is None:
            unmatched.append(name)
            continue
        for path, change in changes_in(base_model, layers[name], name, key_map[known]):
            found[path] = (*found.get(path, ()), change)
    if layers:
        check_matched(slider, len(layers), tuple(unmatched), key_map, "diffusion model")
    return Match(found, tuple(unmatched), len(layers))


def layer_names(model: ModelPatcher) -> dict[str, str]:
    """Return the layer name in a file for each module that sliders can act on, by its path in ComfyUI's model.

    Paths are those of the state dict, such as "diffusion_model.input_blocks.1.0.in_layers.2". UNets get the
    kohya names, in the diffusers form where there is one, which most tools read; other models get the path.
    The stock LoRA loader reads each name back to the same module.
    """
    unet_names: dict[str, str] = {}
    if comfy.utils.unet_to_diffusers(model.model.model_config.unet_config):
        key_map = comfy.lora.model_lora_keys_unet(model.model, {})
        # ComfyUI adds the diffusers form after the plain one, so that it is the one that stays
        unet_names = {key: name for name, key in key_map.items() if name.startswith("lora_unet_")}
    names = {}
    for path, module in model.model.named_modules():
        if path.startswith("diffusion_model.") and can_act_on(module):
            names[path] = unet_names.get(path + _WEIGHT, path)
    return names


def patch_values(
    change: Change, name: str, target: Target
) -> Iterator[tuple[str, Any, tuple[int, int, int] | None, Any]]:
    """Yield (key, value, offset, function) of the patches that ComfyUI's code makes of a change.

    Biases are added here: ComfyUI does not know those of a part of a weight.
    """
    key, offset, function = (*(target if isinstance(target, tuple) else (target,)), None, None)[:3]
    tensors = tensors_by_key(name, change)
    biases = [tensors.pop(f"{name}.{part}", None) for part in _BIASES]
    patches = comfy.lora.load_lora(tensors, {name: target}, log_missing=False)
    if not patches and all(bias is None for bias in biases):
        raise ValueError(
            f"Layer {name}: a change made of {', '.join(tensors_by_key(name, change))} is not known here."
        )
    for value in patches.values():
        yield key, value, offset, function
    outputs = offset if offset is not None and offset[0] == 0 else None  # a bias has no inputs to be part of
    for bias in biases:
        if bias is not None:
            yield f"{key.rpartition('.')[0]}.bias", ("diff", (bias,)), outputs, function


def check_matched(
    slider: Slider, total: int, unmatched: tuple[str, ...], key_map: Mapping[str, Any], where: str
) -> None:
    """Raise ValueError if none of a slider's layers was found; say how many where only some were."""
    if len(unmatched) == total:
        source = f" ({slider.info.source})" if slider.info.source else ""
        expected = next((name for name in key_map if name.startswith("lora_")), next(iter(key_map), "none"))
        raise ValueError(
            f"None of the {total} layers of slider '{slider.name}'{source} is in this {where}: "
            f"the slider has names such as {unmatched[0]}, the model such as {expected}. "
            "It was made for another family of models."
        )
    if unmatched:
        log.warning(
            "Slider '%s': %d of its %d layers are in this %s; not %s",
            slider.name,
            total - len(unmatched),
            total,
            where,
            listed(unmatched),
        )


def changes_in(
    tree: nn.Module, change: Change, name: str, target: Target
) -> Iterator[tuple[str, LowRank | ComfyPatch]]:
    """Yield what a change does, module by module: (path, change) pairs.

    tree: the diffusion model or the text encoders. target: the state-dict key that ComfyUI's key map gives, or
    (key, offset[, function]) for part of a weight.
    Raises ValueError, naming the layer, if nothing of it is understood or it does not fit.
    """
    key = target[0] if isinstance(target, tuple) else target
    path, _, parameter = key.rpartition(".")
    module = tree.get_submodule(path)
    if isinstance(change, LowRank) and parameter == "weight" and can_act_on(module):
        yield path, _low_rank_in(change, weight_shape(module, name), name, *target[1:] if key != target else ())
        return
    adapted = change if isinstance(change, Adapter) else Adapter({DOWN: change.down, UP: change.up})
    for key, value, offset, function in patch_values(adapted, name, target):
        path, _, parameter = key.rpartition(".")
        module = tree.get_submodule(path)
        if module._parameters.get(parameter) is None:
            raise ValueError(f"Layer {name}: it changes {key}, which the model has not.")
        _check_shape(module, parameter, adapted, value, offset, name)
        plain = _as_low_rank(value)
        if plain is not None and parameter == "weight" and can_act_on(module):
            scaled = plain.scaled(adapted.scale)
            yield path, _low_rank_in(scaled, weight_shape(module, name), name, offset, function)
            continue
        value = _without_core(value)
        added = isinstance(value, tuple)  # a difference, such as that of a bias beside the product
        relative = not added and adapted.relative
        linear = added or adapted.linear
        yield path, ComfyPatch(parameter, value, offset, function, adapted.scale, relative, linear)


def _check_shape(
    module: nn.Module, parameter: str, change: Adapter, value: Any, offset: tuple[int, int, int] | None, name: str
) -> None:
    """Raise ValueError unless the change fits what it is for, before anything of it is multiplied out."""
    whole = parameter == "weight" and can_act_on(module)  # packed weights have other shapes than their layers
    shape = weight_shape(module, name) if whole else tuple(own_parameter(module, parameter).shape)
    own = part_shape(name, shape, offset)
    if parameter == "bias" and isinstance(value, tuple):
        check_bias(name, tuple(value[1][0].shape), own)
    else:
        check_fits(name, change.parts, own)


def _without_core(value: Any) -> Any:
    """Return a LoKr whose second factor has a Tucker core with that factor multiplied out, and others as they are.

    ComfyUI's own code fails at those: it forms a Kronecker product of a tensor that is not contiguous.
    """
    if getattr(value, "name", "") != "lokr" or value.weights[7] is None:
        return value
    first, _, alpha, a, b, outputs, inputs, core, dora = value.weights
    scale = 1.0 if alpha is None else alpha / inputs.shape[0]
    second = torch.einsum("oikl,oc,id->cdkl", core.float(), outputs.float(), inputs.float()).contiguous() * scale
    first = a.float() @ b.float() if first is None else first
    return type(value)(value.loaded_keys, (first, second, *(None,) * 6, dora))


def _as_low_rank(value: Any) -> LowRank | None:
    """Return ComfyUI's LoRA adapter as up @ down with alpha folded in, or None if it is more than that."""
    if getattr(value, "name", "") != "lora":
        return None
    up, down, alpha, middle, dora, *reshape = value.weights
    if middle is not None or dora is not None or any(r is not None for r in reshape):
        return None
    return LowRank(down, up if alpha is None else up.float() * (alpha / down.shape[0]))


def _low_rank_in(
    layer: LowRank,
    shape: tuple[int, ...],
    name: str,
    offset: tuple[int, int, int] | None = None,
    function=None,
) -> LowRank:
    """Return the change of a whole weight that changes the part which ComfyUI's key map names.

    offset: (dim, start, length) of the part. function: a reordering of the change's outputs.
    """
    part_shape(name, shape, offset)  # a part beyond the weight's end has a message of its own
    layer = layer.fitted(shape, name) if offset is None else layer.widened(offset, shape, name)
    return layer if function is None else LowRank(layer.down, function(layer.up))
