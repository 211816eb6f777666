"""The pocket model, discovery on it, and what is sampled with its directions; all of it kept in a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _models
import torch
import torch.nn.functional as F
from _kept import Kept, digest
from _people import FEW_STEPS, ORDINARY
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.comfy_host.image_encoder import ImageEncoder
from concept_sliders.comfy_host.joint_encoders import image_embedding, text_embedding
from concept_sliders.comfy_host.preview_images import images_of
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings, sample_seeds
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.discovery.recipe import DiscoveryRecipe
from concept_sliders.discovery.run import DiscoveryOptions, discover
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import Measured
from concept_sliders.evaluation.measuring import measure
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.evaluation.sweep_sampling import Source
from concept_sliders.nodes.measuring_inputs import JOINT
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.models.loading import load_pocket, with_turbo
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack, StackedSlider
from torch import Tensor

log = logging.getLogger("bench")
SHAPE, ENCODER = (8, 16, 16), "vision"
DRAWN_SEED = 2**41 + 7  # people that no training has drawn
MEASURED_SEED = 500_000  # noise that no discovery has sampled


@dataclass(frozen=True)
class Base:
    """A model to discover on, and how it is sampled."""

    name: str
    model: Any
    settings: SamplerSettings


@dataclass(frozen=True)
class Found:
    """Discovered sliders with what they were trained for: directions (K, D), and deviations (K,)."""

    stack: Stack
    directions: Tensor
    deviations: Tensor
    seconds: float


class Studio:
    """Discovers, samples and reads, once for each question; answers are read from the folder the next time.

    samples: of a discovery. steps: of its training. seeds: how many to measure on. seed: of discovery.
    """

    def __init__(self, folder: Path, samples: int, steps: int, seeds: int, seed: int = 0):
        self.kept, self.folder, self.samples, self.steps, self.seed = Kept(folder), folder, samples, steps, seed
        self.seeds = tuple(MEASURED_SEED + seed for seed in range(seeds))
        with torch.inference_mode():
            model, self.clip, self.vae, self.vision = load_pocket()
        self.parent = Base("parent", model, ORDINARY)
        self.probe = load_probe()
        self.embed, self.texts = image_embedding(self.vision), text_embedding(self.clip, self.vision, JOINT)

    @property
    def turbo(self) -> Base:
        """The few-step student."""
        return Base("turbo", with_turbo(self.parent.model), FEW_STEPS)

    def found(self, base: Base, prompt: str, directions: int, unwanted: Sequence[str] = (), **settings: Any) -> Found:
        """Discover on a prompt.

        unwanted: words whose embeddings no direction may lie in. settings: of the recipe; and `given`, changes of the
        embedding, (K, D), to train instead of principal components.
        """
        given = settings.pop("given", None)
        recipe = DiscoveryRecipe(
            prompts=(prompt,),
            directions=directions,
            sampling_steps=base.settings.steps,
            guidance=base.settings.cfg,
            scheduler=base.settings.scheduler,
            **{"samples": self.samples, "steps": self.steps, "seed": self.seed, **settings},
        )
        key = (base.name, recipe.digest(), list(unwanted), None if given is None else given.tolist())
        folder = self.folder / f"found_{digest(key)}"
        if not (folder / "figures.pt").exists():
            self._discover(base, recipe, unwanted, given, folder)
        kept = torch.load(folder / "figures.pt", weights_only=True)
        sliders = (load_slider(folder / f"{index}.safetensors") for index in range(len(kept["directions"])))
        stack = sum((Stack.of(slider, 0.0) for slider in sliders), Stack())
        return Found(stack, kept["directions"], kept["deviations"], kept["seconds"])

    def _discover(
        self, base: Base, recipe: DiscoveryRecipe, unwanted: Sequence[str], given: Tensor | None, folder: Path
    ) -> None:
        began = _models.now()
        with torch.inference_mode():  # as ComfyUI runs its nodes
            encoded = encode_prompts(self.clip, dict.fromkeys((*recipe.prompts, "")))
            found = discover(
                *(base.model, Decoder(base.model, self.vae), ImageEncoder(self.vision), encoded, recipe, SHAPE),
                *("found", DiscoveryOptions(samples=self.folder / "samples")),
                unwanted=self.texts(list(unwanted)) if unwanted else None,
                given=given,
            )
        folder.mkdir(exist_ok=True)
        for index, each in enumerate(found.stack):
            save_slider(each.slider, folder / f"{index}.safetensors")
        figures = {"directions": found.components.directions, "deviations": found.deviations}
        torch.save({**figures, "seconds": _models.now() - began}, folder / "figures.pt")

    def measured(self, base: Base, stack: Stack, prompt: str, strengths: tuple[float, ...]) -> Measured:
        """Sample each slider alone at these strengths, on all seeds; embeddings by the vision tower, and readings."""
        plan = SweepPlan(stack, (prompt,), self.seeds, strengths)
        digests = [slider_digest(each) for each in stack]
        kept = self.kept(
            "measured", (base.name, digests, prompt, self.seeds, strengths), lambda: self._measure(base, plan)
        )
        made = tuple(image for batch in plan.batches() for image in batch)
        return Measured(plan, made, torch.zeros(len(made), 1, 1, 3), **kept)

    def _measure(self, base: Base, plan: SweepPlan) -> dict[str, Any]:
        instruments = Instruments({ENCODER: self.embed}, probe=lambda images: self._read(images))
        with torch.inference_mode():
            source = Source(base.model, self.clip, self.vae, torch.zeros(1, *SHAPE), base.settings)
            found = measure(source, plan, instruments, _tell)
        return {"embeddings": found.embeddings, "lpips": None, "readings": found.readings}

    def mixed(self, base: Base, stack: Stack, prompt: str, count: int, at_once: int, far: float, seed: int) -> Tensor:
        """Embeddings (count, D) of images with so many random sliders each, at random strengths up to `far`.

        at_once: sliders in each image; 0 samples without any.
        """
        mix = ([slider_digest(each) for each in stack], far) if at_once else ()
        question = (base.name, mix, prompt, count, at_once, seed)
        return self.kept("mixed", question, lambda: self._mix(base, stack, prompt, count, at_once, far, seed))

    def _mix(self, base: Base, stack: Stack, prompt: str, count: int, at_once: int, far: float, seed: int) -> Tensor:
        generator, parts = torch.Generator().manual_seed(seed), []
        with torch.inference_mode():
            encoded = encode_prompts(self.clip, dict.fromkeys((prompt, "")))
            for first in range(0, count, 16):
                seeds = [MEASURED_SEED + 100_000 * (1 + seed) + at for at in range(first, min(first + 16, count))]
                model = apply_sliders(base.model, random_mix(stack, len(seeds), at_once, far, generator))
                given = (encoded[prompt], encoded[""], torch.zeros(1, *SHAPE), seeds, base.settings)
                parts.append(self.embed(images_of(self.vae, sample_seeds(model, *given)).float()))
                _tell(first + len(seeds), count)
        return torch.cat(parts)

    def looked_at(self, base: Base, prompt: str, count: int) -> tuple[Tensor, Tensor]:
        """Embeddings (count, D), and pixels of 16 x 16 (count, 768), of sampled images."""

        def look() -> dict[str, Tensor]:
            parts, images = [], self._images(base, prompt, count)
            for some in images:
                small = F.interpolate(some.permute(0, 3, 1, 2), (16, 16), mode="area")  # BHWC -> BCHW
                parts.append((self.embed(some), small.flatten(1)))
            embeddings, pixels = zip(*parts)
            return {"embeddings": torch.cat(embeddings), "pixels": torch.cat(pixels)}

        kept = self.kept("looked_at", (base.name, prompt, count), look)
        return kept["embeddings"], kept["pixels"]

    def _images(self, base: Base, prompt: str, count: int) -> Iterator[Tensor]:
        """Yield sampled images, (n, H, W, 3), batch by batch."""
        with torch.inference_mode():
            encoded = encode_prompts(self.clip, dict.fromkeys((prompt, "")))
            for first in range(0, count, 16):
                seeds = [MEASURED_SEED - 1 - at for at in range(first, min(first + 16, count))]
                given = (encoded[prompt], encoded[""], torch.zeros(1, *SHAPE), seeds, base.settings)
                yield images_of(self.vae, sample_seeds(base.model, *given)).float()

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """Embeddings (count, D) and readings (count, 16) of fresh drawings."""

        def look() -> dict[str, Tensor]:
            pictures = (torch.from_numpy(draw(each)).float() / 255 for each in portraits(count, seed=DRAWN_SEED))
            images = torch.stack(list(pictures))
            with torch.inference_mode():
                return {"embeddings": self.embed(images), "readings": self.probe.read(images).values}

        kept = self.kept("drawn", count, look)
        return kept["embeddings"], kept["readings"]

    def _read(self, images: Tensor) -> dict[str, Tensor]:
        readings = self.probe.read(images.cpu())
        return {name: readings[name] for name in COLUMNS}


def random_mix(stack: Stack, entries: int, at_once: int, far: float, generator: torch.Generator) -> Stack:
    """Return the stack with so many sliders on in each batch entry, at strengths uniform in [-far, far]."""
    if not at_once:
        return Stack()
    strengths = torch.zeros(entries, len(stack))
    for row in strengths:
        chosen = torch.randperm(len(stack), generator=generator)[:at_once]
        row[chosen] = far * (2 * torch.rand(at_once, generator=generator)[: len(chosen)] - 1)
    columns = strengths.T.tolist()
    return sum((Stack.of(each.slider, column) for each, column in zip(stack, columns)), Stack())


def slider_digest(of: StackedSlider) -> str:
    """What sets one slider of a stack apart, its gate included."""
    numbers = [float(part.double().sum()) for change in of.slider.layers.values() for part in change.parts.values()]
    return digest((numbers, repr(of.gates)))


def _tell(done: int, of: int) -> None:
    log.debug("image %d of %d", done, of)
