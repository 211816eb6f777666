"""A model with what measures it: trains sliders and samples edits for the tables, and keeps what it found."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import _models
import comfy.clip_vision
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
import torch.nn.functional as F
from _kept import Kept, digest
from _tables_figures import Edited, figures_of
from _tables_subjects import Pairs, Subject, digest_of_pairs
from concept_sliders.cli.model_files import load_models
from concept_sliders.comfy_host.identity import family, weights_hash
from concept_sliders.comfy_host.latents import to_model_scale
from concept_sliders.comfy_host.preview_images import images_of
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings, sample_seeds
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.evaluation.lpips import Lpips
from concept_sliders.nodes.measuring_inputs import NO_LPIPS, instruments_of
from concept_sliders.pocket.measuring.probe import WEIGHTS as PROBE
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.models.unet import PocketModel
from concept_sliders.pocket.world.shirt_pairs import as_images
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.training.automatic import choose_etas
from concept_sliders.training.concept import Concept
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.pairs.image_sets import ImagePairs, pairs_from_batches, prepare
from concept_sliders.training.recipe import TextualRecipe, VisualRecipe
from concept_sliders.training.run import RunOptions, Trained, train_textual, train_visual
from concept_sliders.training.visual_samples import encode_sets
from torch import Tensor

log = logging.getLogger("bench")
PEOPLE_SEED, APART = 70_000, 1000  # image seeds: those of training seed s begin at PEOPLE_SEED + s * APART
SHOWN, THUMBNAIL = 2, 128  # of every cell, images that are kept, and pixels of their longer side


@dataclass(frozen=True)
class Counts:
    """How much is done. people: images a measurement. iterations, visual_iterations: of training by words and by
    pairs. steps, cfg: of sampling. gate: the part of sampling from which every edit acts. batch: of training. eta: of
    every concept; 0 chooses each as training does."""

    people: int
    iterations: int
    visual_iterations: int
    steps: int
    cfg: float
    gate: float
    batch: int
    eta: float = 0.0


class Edit(Protocol):
    """A way to edit images."""

    def question(self) -> Any:
        """Return all that decides what it does, as plain values."""

    def sampled_by(self, studio: Studio, sign: int, entries: slice) -> tuple[Any, list]:
        """Return (MODEL, positive CONDITIONING) that sample less (-1) or more (+1) of what it edits.

        entries: of the people, those that are sampled in one batch.
        """


class Studio:
    """The model, its instruments, and the folder of answers. options: of the command, see `tables.py`."""

    def __init__(self, options: argparse.Namespace, counts: Counts):
        self.kept, self.counts, self.gate = Kept(options.cache), counts, Gate(counts.gate)
        self.trainings, self.at_once = options.cache / "trainings", options.at_once
        with torch.inference_mode():  # as ComfyUI runs its nodes
            self.model, self.clip, self.vae, vision = _loaded(options)
            self.is_pocket = isinstance(self.model.model, PocketModel)
            self.instruments, notes = instruments_of(self.model, self.clip, vision, None, None, NO_LPIPS)
        for note in notes:
            log.warning(note)
        if options.lpips:
            weights = comfy.utils.load_torch_file(str(options.lpips), safe_load=True)
            lpips = Lpips(weights, comfy.model_management.get_torch_device())
            self.instruments = replace(self.instruments, lpips=lpips)
        side = (options.size or (128 if self.is_pocket else 512)) // 8
        self.latent = comfy.sample.fix_empty_latent_channels(self.model, torch.zeros(1, 4, side, side), 8)
        self.settings = SamplerSettings(counts.steps, counts.cfg, "euler", "normal")
        self.hash = self._hash([self.model, self.clip.patcher, self.vae.patcher, vision and vision.patcher])

    def _hash(self, parts: Sequence[Any]) -> str:
        network = self.instruments.lpips.name if self.instruments.lpips else ""
        probe = hashlib.sha256(PROBE.read_bytes()).hexdigest() if self.is_pocket else ""
        return digest([*(weights_hash(part) for part in parts if part is not None), network, probe])

    @property
    def family(self) -> str:
        return family(self.model)

    @property
    def distance(self) -> str:
        """What the distance of two images is measured by."""
        lpips = self.instruments.lpips
        return f"LPIPS ({lpips.name})" if lpips else f"distance ({next(iter(self.instruments.encoders))})"

    @property
    def sampling(self) -> dict[str, Any]:
        """The counts that decide how images are made; the iterations are an edit's own."""
        trained = ("iterations", "visual_iterations")
        counts = {name: value for name, value in asdict(self.counts).items() if name not in trained}
        return {**counts, "latent": tuple(self.latent.shape)}

    def said(self, *prompts: str) -> dict[str, list]:
        """CONDITIONING by prompt."""
        return encode_prompts(self.clip, dict.fromkeys(prompts))

    def eta(self, concept: Concept, seed: int) -> float:
        """Return the eta of a concept: the counts', or the one that training would choose."""
        if self.counts.eta:
            return self.counts.eta
        recipe = TextualRecipe(concepts=(concept,), seed=seed)
        question = (self.hash, recipe.as_dict(), tuple(self.latent.shape))
        latents = self.latent
        return self.kept(
            "eta", question, lambda: choose_etas(self.model, self.said(*recipe.prompts()), recipe, latents)[0].eta
        )

    def recipe(self, subject: Subject, seed: int, **changes: Any) -> TextualRecipe:
        """Return the defaults' recipe of a subject with its eta. changes: of its settings."""
        concept = replace(subject.concept, eta=self.eta(subject.concept, seed))
        return TextualRecipe(concepts=(concept,), seed=seed, steps=self.counts.iterations, **changes)

    def by_words(self, recipe: TextualRecipe, name: str) -> Slider:
        """Train a slider by words, or take it from the folder."""
        latents = self.latent.repeat(self.counts.batch, *(1 for _ in self.latent.shape[1:]))

        def train() -> Slider:
            began = _models.now()
            said = self.said(*recipe.prompts())
            trained = train_textual(self.model, said, recipe, latents, name, self._kept_run())
            return _whole(trained, name, _models.now() - began)

        return self.kept.slider((self.hash, self.counts.batch, tuple(self.latent.shape), recipe.as_dict()), train)

    def by_pairs(self, pairs: Pairs | Path, prompt: str, recipe: VisualRecipe) -> Slider:
        """Train a slider by drawn pairs, or by those of a folder."""
        name = pairs.name

        def train() -> Slider:
            began = _models.now()
            sets = encode_sets(self._images(pairs, prompt), self.vae.encode, to_model_scale(self.model))
            said = self.said(*(one.prompt for one in sets))
            trained = train_visual(self.model, said, replace(recipe, sets=len(sets)), sets, name, self._kept_run())
            return _whole(trained, name, _models.now() - began)

        return self.kept.slider((self.hash, digest_of_pairs(pairs), prompt, recipe.as_dict()), train)

    def _images(self, pairs: Pairs | Path, prompt: str) -> ImagePairs:
        if isinstance(pairs, Path):
            return read_pairs(pairs, prompt=prompt, side=8 * self.latent.shape[-1])
        less, more = map(as_images, pairs.drawn())
        side = less.shape[1]
        return ImagePairs(tuple(prepare(each, side) for each in pairs_from_batches(less, more, None, prompt)))

    def _kept_run(self) -> RunOptions:
        """A run that was cut off goes on, and a longer one from a shorter one."""
        self.trainings.mkdir(exist_ok=True)
        return RunOptions(preview_every=0, checkpoints=self.trainings)

    def chunks(self) -> list[slice]:
        """Return the people that are sampled together."""
        return [slice(at, at + self.at_once) for at in range(0, self.counts.people, self.at_once)]

    def seeds(self, seed: int) -> list[int]:
        """Return the image seeds that go with a training seed."""
        return [PEOPLE_SEED + seed * APART + person for person in range(self.counts.people)]

    def sampled(self, model: Any, positive: list, seeds: Sequence[int], cfg: float | None = None) -> Tensor:
        """Sample an image for each seed in one batch: (n, H, W, 3) in 0..1, rounded to 8 bits as a file would be."""
        settings = replace(self.settings, cfg=self.settings.cfg if cfg is None else cfg)
        latents = sample_seeds(model, positive, self.said("")[""], self.latent, seeds, settings)
        return (images_of(self.vae, latents).float().cpu().clamp(0, 1) * 255).round() / 255

    def people(self, model: Any, prompt: str, seed: int, cfg: float | None = None) -> Tensor:
        """Sample the images that go with a training seed: (people, H, W, 3), as `sampled`."""
        positive, seeds = self.said(prompt)[prompt], self.seeds(seed)
        return torch.cat([self.sampled(model, positive, seeds[chunk], cfg) for chunk in self.chunks()])

    def edited(self, edit: Edit, sign: int, seed: int) -> Tensor:
        """Sample them edited to one end: (people, H, W, 3), as `sampled`."""
        seeds = self.seeds(seed)
        parts = [self.sampled(*edit.sampled_by(self, sign, chunk), seeds[chunk]) for chunk in self.chunks()]
        return torch.cat(parts)

    def originals(self, prompt: str, seed: int) -> Tensor:
        """Return the images of a prompt without any edit, (people, H, W, 3) in 0..1."""
        question = (self.hash, prompt, seed, self.sampling)
        images = self.kept("originals", question, lambda: as_bytes(self.people(self.model, prompt, seed)))
        return images.float() / 255

    def cell(self, edit: Edit, prompt: str, edited: Edited, seed: int) -> dict[str, Any]:
        """Return the figures of an edit at one training seed by name, and under "shown" (SHOWN, 3, h, w, 3) uint8:
        less, without it, more, of the first people.

        prompt: of the originals. edited: what is read of the images.
        """
        question = (self.hash, edit.question(), prompt, asdict(edited), seed, self.sampling)
        return self.kept("cell", question, lambda: self._measured(edit, prompt, edited, seed))

    def _measured(self, edit: Edit, prompt: str, edited: Edited, seed: int) -> dict[str, Any]:
        usual, began = self.originals(prompt, seed), _models.now()
        less, more = (self.edited(edit, sign, seed) for sign in (-1, 1))
        found: dict[str, Any] = figures_of(less, usual, more, edited, self.instruments)
        shown = torch.stack([less[:SHOWN], usual[:SHOWN], more[:SHOWN]], dim=1)
        log.info("  %s, seed %d (%.0f s)", _title(edit), seed, _models.now() - began)
        return {**found, "shown": as_bytes(torch.stack([small(person) for person in shown]))}


def small(images: Tensor) -> Tensor:
    """(n, H, W, 3) -> (n, h, w, 3) of THUMBNAIL pixels at most on the longer side."""
    scale = min(1.0, THUMBNAIL / max(images.shape[1:3]))
    size = tuple(max(1, round(side * scale)) for side in images.shape[1:3])
    return F.interpolate(images.permute(0, 3, 1, 2), size, mode="area").permute(0, 2, 3, 1)


def as_bytes(images: Tensor) -> Tensor:
    """0..1 -> uint8."""
    return (images * 255).round().to(torch.uint8)


def _title(edit: Edit) -> str:
    return ", ".join(str(part) for part in edit.question() if isinstance(part, (str, float)))


def _whole(trained: Trained | None, name: str, seconds: float) -> Slider:
    """Return the trained slider. Raises RuntimeError if its training was cancelled."""
    if trained is None or trained.progress.stopped:
        raise RuntimeError(f"The training of {name!r} was cancelled; the same command goes on from there.")
    log.info("  %s trained, %d steps (%.0f s)", name, trained.progress.steps, seconds)
    return trained.slider


def _loaded(options: argparse.Namespace) -> tuple[Any, ...]:
    """(MODEL, CLIP, VAE, CLIP_VISION or None), of the files that the options name or of the pocket model."""
    if not (options.checkpoint or options.unet):
        return load_pocket()
    vision = comfy.clip_vision.load(str(options.clip_vision)) if options.clip_vision else None
    return *load_models(options, VisualRecipe()), vision
