"""ComfyUI's text encoders: sliders on them as weight patches of its own, and as one function to train on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import comfy.lora
import torch
from comfy.sd import CLIP
from torch import Tensor, nn

from ..sliders.equation.layer_kinds import can_act_on
from ..sliders.slider import TEXT_ENCODER_PREFIXES, Slider
from ..sliders.stack import Stack
from .match import changes_in, check_matched
from .predictor import Predictor
from .weight_adapters import add_comfy_patches

log = logging.getLogger(__name__)

__all__ = ["CLIP", "TextEncoder", "apply_to_clip", "encoder_layer_names", "text_layers_in"]


def apply_to_clip(clip: CLIP, stack: Stack) -> CLIP:
    """Return a clone of the text encoders, patched by ComfyUI with the stack's text-encoder layers.

    An encoding has neither a sigma nor batch entries: gates do not apply to it, and a slider that changes it
    must have one strength.
    Raises ValueError for a swept slider with text-encoder layers, for one whose layers match nothing, and for a
    layer that does not fit its weight.
    """
    clone = clip.clone()
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    for place in stack:
        layers = place.slider.text_layers
        if not layers:
            continue
        if len(set(place.strength)) > 1:
            raise ValueError(
                f"Slider '{place.slider.name}' changes the text encoder, which has no batch, "
                "so it cannot be swept there; apply it without CLIP, or at one strength."
            )
        if place.is_gated or place.cond_or_uncond != "both":
            log.warning(
                "Slider '%s': its %d layers of the text encoder act from the first step on, and on both prompts: an "
                "encoding has no gates, and is neither cond nor uncond.",
                place.slider.name,
                len(layers),
            )
        unmatched = tuple(name for name in layers if name not in key_map)
        check_matched(place.slider, len(layers), unmatched, key_map, "text encoder")
        for name, layer in layers.items():
            if name in key_map:
                for path, change in changes_in(clone.cond_stage_model, layer, name, key_map[name]):
                    add_comfy_patches(clone, clone.cond_stage_model, path, change, place.strength[0])
    return clone


def text_layers_in(clip: CLIP, slider: Slider) -> tuple[str, ...]:
    """Return the names of the slider's text-encoder layers that these text encoders have."""
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return tuple(name for name in slider.text_layers if name in key_map)


class TextEncoder(Predictor):
    """ComfyUI's text encoders as a predictor: what they predict depends on the prompt alone."""

    def __init__(self, clip: CLIP) -> None:
        self.clip, self.patcher = clip, clip.patcher
        self.device = clip.patcher.load_device
        self.dtype = next(p.dtype for p in clip.cond_stage_model.parameters() if p.is_floating_point())
        self.at_once: int | None = None  # prompts are encoded one by one anyway

    @property
    def model(self) -> nn.Module:
        return self.clip.cond_stage_model

    @property
    def network(self) -> nn.Module:
        return self.clip.cond_stage_model

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Encode prompts: (len(prompts), 1, V), the pooled encoding's numbers last. x, sigma: not used."""
        return torch.stack([torch.cat(self.parts(prompt), dim=1) for prompt in prompts])

    def parts(self, prompt: str) -> list[Tensor]:
        """Return a prompt's encoding (1, T * D), and the pooled one (1, D') if there is one, as float32."""
        cond, pooled = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        return [part.float().flatten(1).to(self.device) for part in (cond, pooled) if part is not None]


def encoder_layer_names(clip: CLIP) -> dict[str, str]:
    """Return the layer name in a file for each module of the text encoders that sliders can act on, by its path."""
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).items():
        path = key.removesuffix(".weight")
        # the plain name is ComfyUI's for every encoder; the kohya one, where there is one, is read by most tools
        if name.startswith(TEXT_ENCODER_PREFIXES) and (path not in names or name.startswith("lora_te")):
            names[path] = name
    modules = dict(clip.cond_stage_model.named_modules())
    return {path: name for path, name in names.items() if path in modules and can_act_on(modules[path])}


def encode_prompts(clip: CLIP, prompts: Iterable[str]) -> dict[str, list]:
    """Encode every prompt with ComfyUI's text encoders; returns CONDITIONING by prompt."""
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}
