"""What the change of a layer does to the parameters of a model, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.lora
import torch
from torch import nn

from ..sliders.adapters.kind import BIAS, DOWN, PEFT_MAGNITUDE, UP
from ..sliders.adapters.shape_checks import check_bias, check_fits, part_shape
from ..sliders.changes import Adapter, Change, LowRank
from ..sliders.equation.layer_kinds import can_act_on, weight_shape
from ..sliders.equation.parameters import own_parameter
from ..sliders.formats.layer_index import Target
from .weight_adapters import ComfyPatch, DecomposedLoRA, tensors_by_key

_BIASES = (BIAS, "b_norm")


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
        if PEFT_MAGNITUDE in change.parts:
            value = DecomposedLoRA(value.loaded_keys, (*value.weights[:3], change.parts[PEFT_MAGNITUDE]))
        yield key, value, offset, function
    outputs = offset if offset is not None and offset[0] == 0 else None  # a bias has no inputs to be part of
    for bias in biases:
        if bias is not None:
            yield f"{key.rpartition('.')[0]}.bias", ("diff", (bias,)), outputs, function
