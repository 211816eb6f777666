"""What the pocket models must show, each part a table: of the VAE, of prompts, of samples, of the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel
from einops import rearrange
from PIL.Image import Image
from torch import Tensor

from ...evaluation.scores import frechet_distance
from ..world.drawing import draw
from ..world.portrait import BINARY, CONTINUOUS, STYLES, Portrait, portraits
from .adherence import Adherence
from .figures import (
    blurred_to,
    correlation,
    gradient_energy,
    patches,
    precision_and_recall,
    psnr,
    shifts,
)
from .probe import NUMBERS, Probe, Readings
from .prompts import OPPOSITIONS, PLAIN, described, world_shift
from .sampling import Sampling, continued, decoded, sampled, sampled_latents
from .sheet import contact_sheet

DISTURBED = 0.1  # of the latents' spread
GATES = (0.0, 0.1, 0.2, 0.3, 0.5)  # shares of sampling
ENERGY = "gradient energy, of the drawings'"
SHOWN = 8  # images on a sheet
SOFT = 30.0  # decibels of the blur that the fidelity figures have to notice


@dataclass(frozen=True)
class Models:
    """What is measured. pocket: (MODEL, CLIP, VAE). vision: a ClipVisionModel."""

    pocket: tuple
    vision: ClipVisionModel
    probe: Probe

    @property
    def vae(self):
        return self.pocket[2]

    def latents_of(self, images: Tensor) -> Tensor:
        """(N, 128, 128, 3) in [0, 1] -> (N, 8, 16, 16)."""
        with torch.inference_mode():
            return torch.cat([self.vae.encode(part) for part in images.split(64)])

    def features_of(self, images: Tensor) -> Tensor:
        """(N, 128): the vision tower's embeddings, of unit length."""
        pictures = rearrange(images, "b h w c -> b c h w") * 2 - 1
        with torch.inference_mode():
            parts = [self.vision.model(pixel_values=part)[2] for part in pictures.split(128)]
        return F.normalize(torch.cat(parts).float(), dim=1)

    def read(self, images: Tensor) -> Readings:
        return self.probe.read(images)


def drawings(people: list[Portrait]) -> Tensor:
    """(N, 128, 128, 3) in [0, 1]."""
    return torch.from_numpy(np.stack([draw(person) for person in people])).float() / 255


def of_the_vae(models: Models, count: int = 512) -> dict[str, float]:
    """Decibels of the round trip, by style and with disturbed latents, and how far readings move."""
    people = portraits(count, seed=2**41)
    images = drawings(people)
    latents = models.latents_of(images)
    back = decoded(models.vae, latents)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    disturbed = decoded(models.vae, latents + DISTURBED * latents.std((0, 2, 3), keepdim=True) * noise)
    quality = psnr(images, back)
    moved = (models.read(back).values - models.read(images).values).abs().mean(0)
    figures = {"dB": quality.mean().item()}
    for style in STYLES:
        figures[f"dB, {style}"] = quality[[person.style == style for person in people]].mean().item()
    figures["dB lost to disturbed latents"] = (quality - psnr(images, disturbed)).mean().item()
    figures |= {f"moved: {name}": moved[index].item() for index, name in enumerate(NUMBERS)}
    return figures


def of_described(models: Models, count: int, sampling: Sampling) -> tuple[dict[str, float], Image]:
    """Captions that name everything: how well they are followed, gradient energy, and a sheet of the worst."""
    people, captions = described(count, seed=1)
    made, drawn = sampled(models.pocket, captions, sampling), drawings(people)
    adherence = Adherence(people, made, models.read(made))
    return adherence.figures() | {ENERGY: _energy(models, made, drawn)}, adherence.sheet(drawn)


@dataclass(frozen=True)
class Ends:
    """What was made of two opposing prompts.

    low, high: the column's mean reading (a share, where it is yes or no). beside: by name, how much further every
    other number moved than the world moves it. images: (N, 128, 128, 3) of either end.
    """

    low: float
    high: float
    beside: dict[str, float]
    images: tuple[Tensor, Tensor]

    @property
    def worst(self) -> float:
        """The largest movement beside the column, without its sign."""
        return max(abs(moved) for moved in self.beside.values())


def of_oppositions(models: Models, count: int, sampling: Sampling) -> dict[str, Ends]:
    """The two ends of every opposition, by column."""
    shown = {}
    for opposition in OPPOSITIONS:
        images = [sampled(models.pocket, [prompt] * count, sampling) for prompt in (opposition.low, opposition.high)]
        low, high = (models.read(end) for end in images)
        beside = {
            name: _mean(high, name) - _mean(low, name) - expected
            for name, expected in world_shift(opposition).items()
        }
        column = opposition.column
        shown[column] = Ends(_mean(low, column), _mean(high, column), beside, (images[0], images[1]))
    return shown


def _mean(readings: Readings, column: str) -> float:
    read = readings[column]
    return (read if column in CONTINUOUS else (read > 0.5).float()).mean().item()


def of_samples(models: Models, count: int, sampling: Sampling) -> tuple[dict[str, float], Image]:
    """Samples at CFG 1 against fresh drawings with the same captions; drawings against drawings; blurred ones.

    And a sheet of the first of them beside the drawings, as the VAE gives them back.
    """
    people, captions = described(count, seed=2)
    others, _ = described(count, seed=3)
    real, fresh = drawings(people), drawings(others)
    latents = sampled_latents(models.pocket, captions, sampling)
    made = decoded(models.vae, latents)
    figures: dict[str, float] = {}
    views = {
        "embeddings": models.features_of,
        "patches": lambda shown: patches(models.latents_of(shown)),
    }
    compared = {"drawings": fresh, "samples": made, "blurred": blurred_to(fresh, SOFT)}
    for view, features_of in views.items():
        truth = features_of(real)
        for name, images in compared.items():
            seen = features_of(images)
            precision, recall = precision_and_recall(_some(truth, count), _some(seen, count))
            distance = frechet_distance(truth, seen)
            figures |= {f"{view}, {name}: {k}": v for k, v in
                        (("distance", distance), ("precision", precision), ("recall", recall))}  # fmt: skip
    figures[ENERGY] = _energy(models, made, real)
    figures["called spoiled"] = (models.read(made)["spoiled"] > 0.5).float().mean().item()
    shown = decoded(models.vae, models.latents_of(real[:SHOWN]))
    return figures, contact_sheet([("samples at CFG 1", made[:SHOWN]), ("drawings of the same", shown)], scale=1)


def of_the_gate(
    models: Models, count: int, sampling: Sampling, shares: Sequence[float] = GATES
) -> dict[str, list[float]]:
    """How alike two runs are that share the first part of sampling, by the part shared.

    Of each number: correlation of what is read in both. Of yes or no and of style: the share that agrees. Of the
    place: how far one image has to be moved to lie best on the other, in pixels.
    """
    figures: dict[str, list[float]] = {name: [] for name in (*NUMBERS, *BINARY, "style", "place, px")}
    for share in shares:
        one, other = continued(models.pocket, [PLAIN] * count, share, (1, 2), sampling)
        a, b = models.read(one), models.read(other)
        for name in NUMBERS:
            figures[name].append(correlation(a[name], b[name]))
        for name in BINARY:
            figures[name].append(((a[name] > 0.5) == (b[name] > 0.5)).float().mean().item())
        figures["style"].append((a["style"].argmax(1) == b["style"].argmax(1)).float().mean().item())
        figures["place, px"].append(shifts(one, other).mean().item())
    return figures


def _energy(models: Models, made: Tensor, real: Tensor) -> float:
    """Gradient energy of samples, relative to that of drawings that went through the VAE."""
    return gradient_energy(made) / gradient_energy(decoded(models.vae, models.latents_of(real)))


def _some(features: Tensor, count: int) -> Tensor:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return features[order[:count]]
