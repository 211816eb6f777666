"""ComfyUI's text encoders: sliders on them as weight patches of its own, and as one function to train on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import comfy.lora
import torch
from comfy.sd import CLIP
from torch import Tensor, nn

from ..sliders.equation.layer_kinds import can_act_on
from ..sliders.slider import TEXT_ENCODER_PREFIXES, Slider
from ..sliders.stack import Stack, StackedSlider
from .layer_finder import LayerFinder
from .match import Match, check_placed, matched_by
from .predictor import ActingLayers, Predictor
from .swept_encoding import Placed, sweep_encodings
from .weight_adapters import add_comfy_patches

log = logging.getLogger(__name__)

__all__ = ["CLIP", "TextEncoder", "apply_to_clip", "encoder_layer_names", "match_text"]


def apply_to_clip(clip: CLIP, stack: Stack) -> CLIP:
    """Return a clone of the text encoders, patched by ComfyUI with the stack's text-encoder layers.

    With a swept slider each prompt is encoded once for every strength, see `swept_encoding`: the conditioning has a
    batch entry for each. An encoding has no sigma, so that gates do not apply to it.
    Raises ValueError as `match_text` does.
    """
    clone = clip.clone()
    swept: list[Placed] = []
    for place in stack:
        layers = place.slider.text_layers
        if not layers:
            continue
        if problem := acts_beyond_its_gate(place):
            log.warning("Slider '%s': %s", place.slider.name, problem)
        match = match_text(clip, place.slider)
        if len(set(place.strength)) > 1:
            swept.append((place, match.layers))
            continue
        for path, changes in match.layers.items():
            for change in changes:
                add_comfy_patches(clone, clone.cond_stage_model, path, change, place.strength[0])
    if swept:
        sweep_encodings(clone.patcher, swept)
    return clone


def acts_beyond_its_gate(placed: StackedSlider) -> str:
    """Say that layers of the text encoder do not keep to their slider's gate, or to cond or uncond; else ""."""
    layers = placed.slider.text_layers
    if not layers or not (placed.is_gated or placed.cond_or_uncond != "both"):
        return ""
    return (
        f"its {len(layers)} layers of the text encoder act from the first step on, and on both prompts: an encoding "
        "has no gates, and is neither cond nor uncond."
    )


def match_text(clip: CLIP, slider: Slider) -> Match:
    """Find a slider's text-encoder layers in these text encoders; those that do not fit are left out.

    Raises ValueError as `match.layers_of` does.
    """
    finder = LayerFinder.of_encoders(clip.cond_stage_model)
    placement = finder.place(slider.text_layers)
    check_placed(slider, placement, finder, "text encoder")
    return matched_by(placement, len(slider.text_layers))


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

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        prompts: Sequence[str],
        layers: ActingLayers | None = None,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """Encode prompts without gradients, if need be with a slider that acts at strengths (len(prompts), 1, 1)."""
        if layers is None or strengths is None:
            return self(x, sigma, prompts)
        encoded = []
        for prompt, strength in zip(prompts, strengths, strict=True):
            with layers.acting(strength):
                encoded.append(self(x, sigma, [prompt]))
        return torch.cat(encoded)

    def parts(self, prompt: str) -> list[Tensor]:
        """Return a prompt's encoding (1, T * D), and the pooled one (1, D') if there is one, as float32.

        Raises ValueError if sliders are swept on the text encoders.
        """
        cond, pooled = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        check_is_one(prompt, cond)
        return [part.float().flatten(1).to(self.device) for part in (cond, pooled) if part is not None]


def encoder_layer_names(clip: CLIP, without: Collection[str] = ()) -> dict[str, str]:
    """Return the layer name in a file for each module of the text encoders that sliders can act on, by its path.

    without: encoders that are left out, by ComfyUI's names for them ("l", "g", "t5xxl", ...).
    """
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).items():
        path = key.removesuffix(".weight")
        # the plain name is ComfyUI's for every encoder; the kohya one, where there is one, is read by most tools
        if name.startswith(TEXT_ENCODER_PREFIXES) and (path not in names or name.startswith("lora_te")):
            names[path] = name
    modules = dict(clip.cond_stage_model.named_modules())
    return {
        path: name
        for path, name in names.items()
        if path in modules
        and can_act_on(modules[path])
        and path.partition(".")[0].removeprefix("clip_") not in without
    }


def check_is_one(prompt: str, encoding: Tensor) -> None:
    """Raise ValueError if an encoding has several batch entries, as those of a sweep have."""
    if len(encoding) > 1:
        raise ValueError(
            f"The prompt {prompt!r} has {len(encoding)} encodings, one for each strength of a sweep: nothing can be "
            "trained on them. Take the CLIP from before the sliders that are swept."
        )


def encode_prompts(clip: CLIP, prompts: Iterable[str]) -> dict[str, list]:
    """Encode every prompt with ComfyUI's text encoders; returns CONDITIONING by prompt."""
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}
