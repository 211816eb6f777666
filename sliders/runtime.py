"""Sliders at work on the host's models. The only module of this room that knows the host.

The sliders act through forward hooks that exist only while one evaluation of the model runs: whatever happens
in sampling, nothing stays behind in the host's module tree, and no weight of the host's is written to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
from torch import Tensor, nn

from .bank import LayerBank, can_act_on, weight_shape
from .gate import PercentToSigma
from .slider import LowRank, Slider
from .stack import Stack

KEY = "concept_sliders"
_WEIGHT = ".weight"

# What acts on one module, by its path within the host's model: (slider index, change) pairs
Placement = dict[str, tuple[tuple[int, LowRank], ...]]


@dataclass(frozen=True)
class Match:
    """Which of a slider's layers a model has.

    layers: the changes by the path of the host's module, shaped for it.
    unmatched: the names of the slider's layers that the model has not. total: how many layers the slider has
        for the diffusion model.
    """

    layers: Mapping[str, tuple[LowRank, ...]]
    unmatched: tuple[str, ...]
    total: int

    @property
    def matched(self) -> int:
        return self.total - len(self.unmatched)


def apply_sliders(model: ModelPatcher, stack: Stack) -> ModelPatcher:
    """A clone of the model on which the stack acts, in addition to the stacks applied to it before.

    Text-encoder layers are left to `apply_to_clip`.
    Raises ValueError if a slider's layers match nothing in the model or do not fit it.
    """
    clone = model.clone()
    if not len(stack):
        return clone
    acting = acting_on(model)
    before = acting.stack if acting else Stack()
    placement = dict(acting.placement) if acting else {}
    for index, placed in enumerate(stack, start=len(before)):
        for path, changes in resolve(model, placed.slider).layers.items():
            placement[path] = (*placement.get(path, ()), *((index, change) for change in changes))
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, ActingStack(before + stack, placement))
    return clone


def acting_on(model: ModelPatcher) -> ActingStack | None:
    """The stack that acts on a model, with its placement, or None."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0] if wrappers else None


def apply_to_clip(clip: CLIP, stack: Stack) -> CLIP:
    """A clone of the text encoders with the stack's text-encoder layers patched in by the host.

    A text encoding has neither noise level nor rows: gates do not apply to it, and a slider that changes it
    must have one strength.
    Raises ValueError for a swept slider with text-encoder layers, and for one whose layers match nothing.
    """
    clone = clip.clone()
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    for placed in stack:
        layers = placed.slider.text_layers
        if not layers:
            continue
        if len(set(placed.strength)) > 1:
            raise ValueError(
                f"Slider '{placed.slider.name}' changes the text encoder, which has no rows, "
                "so it cannot be swept there; apply it without CLIP, or at one strength."
            )
        known = {name: layer for name, layer in layers.items() if name in key_map}
        _report(placed.slider, len(layers), tuple(set(layers) - set(known)), key_map, "text encoder")
        pairs = {
            f"{name}.lora_{part}.weight": tensor
            for name, layer in known.items()
            for part, tensor in (("down", layer.down), ("up", layer.up))
        }
        clone.add_patches(comfy.lora.load_lora(pairs, key_map, log_missing=False), placed.strength[0])
    return clone


def resolve(model: ModelPatcher, slider: Slider) -> Match:
    """Find a slider's layers in a model by the host's own names for them.

    A layer that changes only part of a fused weight, such as the queries of a joint query-key-value layer, is
    widened to the whole of it with zeros.
    Raises ValueError if no layer meant for the diffusion model is found, or one does not fit; logs a warning,
    with the numbers, if only some are found.
    """
    layers = slider.model_layers
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    found: dict[str, tuple[LowRank, ...]] = {}
    unmatched = []
    for name, host_name in _host_names(layers).items():
        target = key_map.get(host_name)
        key, *part = target if isinstance(target, tuple) else (target,)
        if key is None or not key.endswith(_WEIGHT):
            unmatched.append(name)
            continue
        path = key[: -len(_WEIGHT)]
        shape = weight_shape(model.model.get_submodule(path), name)
        found[path] = (*found.get(path, ()), _placed_in(layers[name], shape, name, *part))
    if layers:
        _report(slider, len(layers), tuple(unmatched), key_map, "diffusion model")
    return Match(found, tuple(unmatched), len(layers))


def layer_names(model: ModelPatcher) -> dict[str, str]:
    """For each module that sliders can act on, by its path in the host's model, its layer name in a file.

    Paths are those of the state dict, such as "diffusion_model.input_blocks.1.0.in_layers.2". UNets get the
    kohya names, in the diffusers form where there is one, which most tools read; other models get the path.
    The stock LoRA loader reads each name back to the same module.
    """
    unet_names: dict[str, str] = {}
    if comfy.utils.unet_to_diffusers(model.model.model_config.unet_config):
        key_map = comfy.lora.model_lora_keys_unet(model.model, {})
        # The host adds the diffusers form after the plain one, so that it is the one that stays
        unet_names = {key: name for name, key in key_map.items() if name.startswith("lora_unet_")}
    names = {}
    for path, module in model.model.named_modules():
        if path.startswith("diffusion_model.") and can_act_on(module):
            names[path] = unet_names.get(path + _WEIGHT, path)
    return names


class ActingStack:
    """The wrapper around a model evaluation that lets a stack act in it. Clones of a model share it.

    stack: the sliders, all that were applied to the model. placement: the layers they act on.
    """

    def __init__(self, stack: Stack, placement: Placement) -> None:
        self.stack = stack
        self.placement = placement
        # One bank per module tree: clones share a tree, copies on further devices have their own
        self._banks: WeakKeyDictionary[nn.Module, LayerBank] = WeakKeyDictionary()

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ) -> Tensor:
        base_model = executor.class_obj
        transformer_options = transformer_options or {}
        strengths = self.strengths(base_model, x, t, transformer_options)
        acting = self._bank(base_model).acting(strengths) if strengths.any() else nullcontext()
        with acting:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def strengths(
        self, base_model: nn.Module, x: Tensor, t: Tensor, transformer_options: Mapping[str, Any]
    ) -> Tensor:
        """The strengths for the entries of a model batch: (batch, sliders), or (1, sliders) for all of them.

        The host's batch is its conditioning chunks one after the other, each holding every row.
        Raises ValueError if the rows of the stack are not those of the batch.
        """
        chunks = len(transformer_options.get("cond_or_uncond", (0,)))
        rows = self.stack.rows
        if rows > 1 and x.shape[0] != rows * chunks:
            raise ValueError(
                f"The sliders are swept over {rows} rows, but the batch that is sampled has "
                f"{x.shape[0] // chunks}; both numbers must be the same."
            )
        if not self.stack.is_gated:
            strengths = self.stack.strengths()  # reading sigma would make the host wait for the device
        else:
            sigmas = transformer_options.get("sigmas", t)
            strengths = self.stack.strengths(
                float(sigmas.flatten()[0]), _percent_to_sigma(base_model, sigmas.dtype)
            )
        return (
            strengths.repeat(chunks, 1) if rows > 1 else strengths
        )  # (rows, sliders) -> (chunks * rows, sliders)

    def _bank(self, base_model: nn.Module) -> LayerBank:
        if base_model not in self._banks:
            modules = {base_model.get_submodule(path): path for path in self.placement}
            self._banks[base_model] = LayerBank(
                {m: self.placement[path] for m, path in modules.items()}, modules
            )
        return self._banks[base_model]


def _percent_to_sigma(base_model: nn.Module, dtype: torch.dtype) -> PercentToSigma:
    """The model's map from fraction of sampling to sigma, rounded as the host rounds it when it compares."""
    model_sampling = base_model.model_sampling
    return lambda percent: torch.tensor(float(model_sampling.percent_to_sigma(percent)), dtype=dtype).item()


def _host_names(layers: Mapping[str, LowRank]) -> dict[str, str]:
    """Each layer's name after the renaming that the stock LoRA loader does for some trainers' files."""
    end = ".lora_down.weight"
    renamed = comfy.lora_convert.convert_lora({name + end: name for name in layers})
    return {name: key[: -len(end)] for key, name in renamed.items()}


def _placed_in(
    layer: LowRank,
    shape: tuple[int, ...],
    name: str,
    offset: tuple[int, int, int] | None = None,
    function=None,
) -> LowRank:
    """The change of a whole weight that changes the part the host's key map names.

    offset: (dim, start, length) of the part. function: a reordering of the change's outputs.
    """
    if offset is None:
        layer = layer.fitted(shape, name)
    else:
        dim, start, length = offset
        part = layer.fitted((*shape[:dim], length, *shape[dim + 1 :]), name)
        side = part.up if dim == 0 else part.down
        whole = side.new_zeros(*side.shape[:dim], shape[dim], *side.shape[dim + 1 :])
        whole.narrow(dim, start, length).copy_(side)
        layer = LowRank(part.down, whole) if dim == 0 else LowRank(whole, part.up)
    return layer if function is None else LowRank(layer.down, function(layer.up))


def _report(
    slider: Slider, total: int, unmatched: tuple[str, ...], key_map: Mapping[str, Any], where: str
) -> None:
    if len(unmatched) == total:
        source = f" ({slider.info.source})" if slider.info.source else ""
        expected = next((name for name in key_map if name.startswith("lora_")), next(iter(key_map), "none"))
        raise ValueError(
            f"None of the {total} layers of slider '{slider.name}'{source} is in this {where}: "
            f"the slider has names such as {unmatched[0]}, the model such as {expected}. "
            "It was made for another family of models."
        )
    if unmatched:
        logging.warning(
            "Slider '%s': %d of its %d layers are in this %s; not %s",
            slider.name,
            total - len(unmatched),
            total,
            where,
            ", ".join(unmatched),
        )
