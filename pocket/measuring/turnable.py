"""What sliders and edits will rest on: a first age slider, briefly trained, and a first edit of inverted drawings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...comfy_host.apply import apply_sliders
from ...inversion.conditioning import negative_conditioning
from ...inversion.inversion_run import invert
from ...inversion.settings import InversionSettings
from ...sliders.gate import Gate
from ...sliders.slider import Slider
from ...sliders.stack import Stack
from ...training.recipe import TextualRecipe
from ..train_sliders import trained
from ..world.captions import caption
from ..world.portrait import portraits
from .figures import psnr
from .prompts import PLAIN
from .report import Models, drawings
from .sampling import Sampling, by_euler, conditioning, decoded, sampled

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
STEPS = 150
GATE = 0.2  # where edits begin: what was fixed before stays
SAMPLING_STEPS, CFG, RATE = 25, 3.0, 0.1  # of the inversion


@dataclass(frozen=True)
class Turned:
    """Images along strengths and what was read in them.

    images: by strength ("+1"), (N, 128, 128, 3); an edit has its "drawing" too. figures: mean age by strength;
    "stays": the share of all images off zero in which woman, hat and style are as at strength 0.
    """

    images: dict[str, Tensor]
    figures: dict[str, float]


def first_slider(models: Models, recipe: TextualRecipe) -> Slider:
    """Of a recipe, in 150 steps. The images trained on are of the model's own size."""
    return trained(models.pocket, replace(recipe, steps=STEPS), "first").slider


def turned(models: Models, slider: Slider, count: int, sampling: Sampling) -> Turned:
    """The plain prompt at every strength."""
    model, clip, vae = models.pocket
    images = {
        strength: sampled((_with(model, slider, strength), clip, vae), [PLAIN] * count, sampling)
        for strength in STRENGTHS
    }
    return Turned(_labelled(images), _stays(models, images))


def along(models: Models, slider: Slider, column: str, count: int, sampling: Sampling) -> list[float]:
    """The mean reading of the plain prompt's images at strengths -2 to 2, and the share that stays at -1 and at 1.

    Behind the gate that the slider's file names.
    """
    model, clip, vae = models.pocket
    readings = {
        strength: models.read(
            sampled((_with(model, slider, strength, slider.info.gate), clip, vae), [PLAIN] * count, sampling)
        )
        for strength in (-2.0, -1.0, 0.0, 1.0, 2.0)
    }
    stay = [readings[0.0].same_person(readings[end]).float().mean().item() for end in (-1.0, 1.0)]
    return [*(read[column].mean().item() for read in readings.values()), *stay]


def edited(models: Models, slider: Slider, attribute: str, count: int) -> Turned:
    """Inverted drawings at every strength, from a gate on. Their captions say nothing of the attribute.

    figures has the decibels of the VAE's round trip and of what null-text makes again beside the others.
    """
    model, clip, vae = models.pocket
    people, rng = portraits(count, seed=2**41 + 9), np.random.default_rng(9)
    images = drawings(people)
    settings = InversionSettings(steps=SAMPLING_STEPS, cfg=CFG, learning_rate=RATE, refinement=2)
    with torch.inference_mode():
        latents = vae.encode(images)
        positive = conditioning(clip, [caption(person, rng, (attribute,)) for person in people])
        made = invert(model, latents, positive, conditioning(clip, [""]), settings)
    nothing, negative, shown = torch.zeros_like(made.noise), negative_conditioning(made), {}
    for strength in STRENGTHS:
        turning = _with(model, slider, strength, Gate(GATE))
        shown[strength] = decoded(vae, by_euler(turning, made.noise, nothing, made.sigmas, positive, negative, CFG))
    quality = {
        "dB, VAE round trip": psnr(decoded(vae, latents), images).mean().item(),
        "dB, null-text": psnr(shown[0.0], images).mean().item(),
    }
    return Turned({"drawing": images, **_labelled(shown)}, {**quality, **_stays(models, shown)})


def _labelled(images: dict[float, Tensor]) -> dict[str, Tensor]:
    return {f"{strength:+g}": shown for strength, shown in images.items()}


def _with(model, slider: Slider, strength: float, gate: Gate | None = None):
    return apply_sliders(model, Stack.of(slider, strength, gate)) if strength else model


def _stays(models: Models, images: dict[float, Tensor]) -> dict[str, float]:
    readings = {strength: models.read(shown) for strength, shown in images.items()}
    kept = [readings[0.0].same_person(read) for strength, read in readings.items() if strength]
    ages = {f"age at {strength:+g}": read["age"].mean().item() for strength, read in readings.items()}
    return {**ages, "stays": torch.cat(kept).float().mean().item()}
