"""What a slider is: changes, low-rank as a rule, of some of a model's layers (arXiv 2311.12092)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from types import MappingProxyType
from typing import Any

import torch

from .calibration import Calibration
from .changes import Change
from .gate import Gate

TEXT_ENCODER_PREFIXES = ("lora_te", "lora_prior_te", "text_encoder", "text_encoders.", "text_encoder_2.")


@dataclass(frozen=True)
class SliderInfo:
    """What a slider's file says about it, apart from the weights.

    less, more: labels of the negative and the positive end.
    useful_range: the strengths between which it does what its labels say.
    gate: the window of sampling it is meant to act in.
    recipe: how it was trained, as plain JSON values.
    family: the base model's family, as ComfyUI names it ("SD15", "SDXL", "Flux", ...).
    base_model_hash: a hash of the base model's weights, or "".
    source: the file it came from, or "".
    names_in_file: what the file calls the layers that have other names here, by these.
    extra: further header fields of the file, by name.
    calibration: what its calibrated units stand for; None if it was not calibrated.
    Raises ValueError if the range is empty or not finite.
    """

    less: str = ""
    more: str = ""
    useful_range: tuple[float, float] = (-1.0, 1.0)
    gate: Gate = Gate()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    base_model_hash: str = ""
    source: str = ""
    names_in_file: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        low, high = self.useful_range
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"A slider's useful range runs from a lower to a higher strength; got {low} to {high}.")

    def at_strength(self, strength: float) -> SliderInfo:
        """Return what is to be said of the slider with a strength in its weights, which is 1 there.

        A negative one exchanges the ends. At 0 nothing is left to be calibrated. The range that stands for an unknown
        one stays.
        """
        if not strength:
            return replace(self, calibration=None)
        less, more = (self.less, self.more) if strength > 0 else (self.more, self.less)
        low, high = self.useful_range
        if self.calibration is not None or (low, high) != SliderInfo.useful_range:
            low, high = sorted((low / strength, high / strength))
        calibration = self.calibration and self.calibration.at_strength(strength)
        return replace(self, less=less, more=more, useful_range=(low, high), calibration=calibration)


@dataclass(frozen=True, eq=False)
class Slider:
    """A named slider: its changes by the layer names of its file, and what is known about it.

    Raises ValueError, naming the slider, if it has no layers, or a layer's shapes or numbers are bad.
    """

    name: str
    layers: Mapping[str, Change]
    info: SliderInfo = field(default_factory=SliderInfo)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        if not self.layers:
            raise ValueError(f"Slider '{self.name}' has no layers.")
        for name, layer in self.layers.items():
            try:
                layer.check(name)
            except ValueError as error:
                raise ValueError(f"Slider '{self.name}': {error}") from error

    def names_in_file(self, names: Iterable[str]) -> list[str]:
        """Return what the file that the slider came from calls some of its layers."""
        return [self.info.names_in_file.get(name, name) for name in names]

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max(layer.rank for layer in self.layers.values())

    @cached_property
    def content_hash(self) -> str:
        """A hash of its layers' names and numbers: the same for equal sliders, whatever file they came from."""
        digest = hashlib.blake2b(digest_size=16)
        for name, layer in sorted(self.layers.items()):
            for part, tensor in layer.parts.items():
                digest.update(f"{name} {part} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            digest.update(str(getattr(layer, "scale", 1.0)).encode())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """The memory its weights take."""
        return sum(t.numel() * t.element_size() for layer in self.layers.values() for t in layer.parts.values())

    @property
    def model_layers(self) -> dict[str, Change]:
        """The layers meant for the diffusion model."""
        return {name: layer for name, layer in self.layers.items() if not name.startswith(TEXT_ENCODER_PREFIXES)}

    @property
    def text_layers(self) -> dict[str, Change]:
        """The layers meant for the text encoders."""
        return {name: layer for name, layer in self.layers.items() if name.startswith(TEXT_ENCODER_PREFIXES)}
