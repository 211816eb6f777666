"""What each choice in training does: the figures and images of docs/training.md.

    python3 dev.py bench choices [--only eta steps ...]

Trains age sliders of the pocket model that differ in one setting, sweeps each over the same people, reads them with
the probe, and draws a strip for every setting. Sliders are kept in the folder --out and not trained twice.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import _models  # noqa: F401  (makes ComfyUI importable)
import nodes
import torch
from concept_sliders.nodes.image_strip import draw_strip
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.pocket.world.shirt_pairs import as_images
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.world.portrait import BINARY, CONTINUOUS, portraits
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.pairs.image_sets import pairs_from_batches, prepare
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe, VisualRecipe
from concept_sliders.training.run import RunOptions, train_textual, train_visual
from concept_sliders.training.visual_samples import encode_sets
from PIL import Image
from torch import Tensor

PERSON = "portrait of a person"
AGE = Concept(
    PERSON,
    "portrait of a very old person",
    "portrait of a very young person",
    ("with glasses", "without glasses"),
    eta=1.0,
)
CROOKED = replace(AGE, more="portrait of a very old man", less="portrait of a very young woman")
USUAL = TextualRecipe(concepts=(AGE,), steps=200, start_percent=0.1, seed=0)
PAPER = replace(USUAL, on_policy_rollouts=0.0, preserve_in_target=False)
DRAWN = VisualRecipe(less="young", more="old", method="ADDifT", steps=60, start_percent=0.1, seed=0)
READ = (*CONTINUOUS, *BINARY)
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
SAMPLING_STEPS, GUIDANCE, FIRST_SEED, GATE = 12, 3.0, 900, Gate(0.1)
BATCH, CELL, SHOWN = 4, 96, (0, 3)
log = logging.getLogger("choices")


@dataclass(frozen=True)
class Choice:
    """A recipe and what is said of it. title: what the strip says above it. people: to measure on."""

    name: str
    title: str
    recipe: TextualRecipe | VisualRecipe = USUAL
    people: int = 12


def _with_eta(eta: float, preserve: tuple[str, ...] = AGE.preserve) -> TextualRecipe:
    return replace(USUAL, concepts=(replace(AGE, eta=eta, preserve=preserve),))


RIGHT = "usual"
SHEETS = {  # steps first, and rising: a longer run goes on from a shorter one
    "steps": (
        Choice("steps_few", "20 steps: too few", replace(USUAL, steps=20)),
        Choice(RIGHT, "200 steps"),
        Choice("steps_many", "400 steps, the nodes' default", replace(USUAL, steps=400)),
    ),
    "eta": (
        Choice("eta_small", "eta 0.25: too small", _with_eta(0.25)),
        Choice(RIGHT, "eta 1, as auditions choose it"),
        Choice("eta_large", "eta 4: too large", _with_eta(4.0)),
    ),
    "preserve": (
        Choice(
            "preserve_nothing",
            "nothing preserved: glasses come with age",
            _with_eta(1.0, ()),
            32,
        ),
        Choice("preserve_paper", "preserved as the paper has it", PAPER, 32),
        Choice("preserve_twins", "preserved as Train Slider does", USUAL, 32),
    ),
    "signs": (
        Choice("one_sign", "strength +1 trained alone", replace(USUAL, both_signs=False)),
        Choice(RIGHT, "both signs trained"),
    ),
    "pairs": (
        Choice("pairs_addift", "six drawn pairs: ADDifT, 60 steps", DRAWN),
        Choice("pairs_addift_long", "ADDifT, 300 steps", replace(DRAWN, steps=300)),
        Choice("pairs_fitted", "the same, made stronger at its end", replace(DRAWN, steps=300, fit_strength=True)),
        Choice("pairs_noise_short", "noise, 60 steps", replace(DRAWN, method="noise")),
        Choice("pairs_noise_long", "noise, 400 steps: too many", replace(DRAWN, method="noise", steps=400)),
    ),
    "rank": (
        Choice("rank_small", "rank 1", replace(USUAL, rank=1)),
        Choice(RIGHT, "rank 4"),
        Choice("rank_large", "rank 32", replace(USUAL, rank=32)),
        Choice("rank_full", "whole differences", replace(USUAL, full_rank=True)),
    ),
    "target": (
        Choice("target_empty", "no target: acts on anything", replace(USUAL, concepts=(replace(AGE, target=""),))),
        Choice(RIGHT, "target: portrait of a person"),
        Choice(
            "target_crooked", "ends that differ in more: old man, young woman", replace(USUAL, concepts=(CROOKED,))
        ),
    ),
    "layers": (
        Choice("layers_self", "self-attention alone", replace(USUAL, layers="self-attention")),
        Choice("layers_cross", "cross-attention alone", replace(USUAL, layers="cross-attention")),
        Choice("layers_linear", "all but cross-attention, no convolutions", replace(USUAL, convolutions=False)),
        Choice(RIGHT, "all but cross-attention"),
        Choice("layers_noxattn", "noxattn, the published choice", replace(USUAL, layers="noxattn")),
        Choice("layers_full", "full, of the published trainer", replace(USUAL, layers="full")),
        Choice("layers_all", "all", replace(USUAL, layers="all")),
    ),
}


class Studio:
    """The pocket model, with the means to train an age slider and to look at it."""

    def __init__(self, folder: Path):
        self.folder = folder
        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_pocket()
        self.probe = load_probe()

    def slider(self, choice: Choice) -> Slider:
        """Trained now, or taken from the folder if it has been before."""
        file = self.folder / f"{choice.name}.safetensors"
        if not file.exists():
            began = time.monotonic()
            save_slider(self._trained(choice.recipe), file)
            log.info("%s: trained in %.0f s", choice.name, time.monotonic() - began)
        return load_slider(file)

    @torch.inference_mode()  # as ComfyUI runs its nodes
    def _trained(self, recipe: TextualRecipe | VisualRecipe) -> Slider:
        run_options = RunOptions(preview_every=0, checkpoints=self.folder)  # a longer run goes on from a shorter one
        if isinstance(recipe, TextualRecipe):
            latents = torch.zeros(BATCH, 8, 16, 16)
            return train_textual(self.model, self._said(recipe.prompts()), recipe, latents, "age", run_options).slider
        sets = encode_sets(drawn_pairs(), self.vae.encode, self.model.model.process_latent_in)
        recipe = replace(recipe, sets=len(sets))
        return train_visual(self.model, self._said([PERSON]), recipe, sets, "drawn age", run_options).slider

    @torch.inference_mode()
    def sweep(self, slider: Slider, people: int) -> Tensor:
        """(people, strengths, H, W, 3): the same people in every column."""
        columns = len(STRENGTHS)
        latent = {
            "samples": torch.zeros(people * columns, 8, 16, 16),
            "batch_index": [person for person in range(people) for _ in range(columns)],
        }
        said = self._said([PERSON, ""])
        model = apply_sliders(self.model, Stack.of(slider, gate=GATE).swept(0, STRENGTHS, people))
        (made,) = nodes.common_ksampler(
            model, FIRST_SEED, SAMPLING_STEPS, GUIDANCE, "euler", "simple", said[PERSON], said[""], latent
        )
        return self.vae.decode(made["samples"]).unflatten(0, (people, columns))

    def figures(self, images: Tensor) -> Tensor:
        """(people, strengths, H, W, 3) -> (strengths, attributes): the probe's mean readings."""
        readings = self.probe.read(images.flatten(0, 1))
        values = torch.stack([readings[name] for name in READ], dim=1)
        return values.unflatten(0, images.shape[:2]).mean(0)

    def _said(self, prompts) -> dict[str, list]:
        return encode_prompts(self.clip, prompts)


def drawn_pairs():
    """Six people as children and as old ones, drawn alike in everything else."""
    people = [person.with_(spoiled=False) for person in portraits(6, seed=11)]
    less, more = (as_images([draw(person.with_(age=age)) for person in people]) for age in (0.1, 0.9))
    return [prepare(pair, 128) for pair in pairs_from_batches(less, more, None, PERSON)]


def row(choice: Choice, figures: Tensor) -> str:
    """A line of the table: age along the strengths, and what else moved between -1 and +1."""
    ages = figures[:, READ.index("age")]
    moved = (figures[STRENGTHS.index(1.0)] - figures[STRENGTHS.index(-1.0)]).abs()
    others = [index for index, name in enumerate(READ) if name not in ("age", "glasses")]
    spoiled = figures[:, READ.index("spoiled")].max()
    cells = [*(f"{age:.2f}" for age in ages), f"{moved[READ.index('glasses')]:.2f}", f"{moved[others].mean():.3f}"]
    return f"| {choice.title} | {' | '.join(cells)} | {spoiled:.2f} |"


def strip(rows: list[tuple[Choice, Tensor]]) -> Image.Image:
    """Draw the choices one above the other, two people each."""
    parts = []
    for index, (choice, images) in enumerate(rows):
        labels = [f"{s:+g}" if s else "0" for s in STRENGTHS] if not index else [""] * len(STRENGTHS)
        parts.append(draw_strip(images[list(SHOWN)].flatten(0, 1), labels, choice.title, CELL)[0])
    sheet = torch.cat(parts)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())


def made(studio: Studio, choice: Choice) -> tuple[Tensor, Tensor]:
    """(images, figures) of a choice, kept beside its slider."""
    file = studio.folder / f"{choice.name}.pt"
    if not file.exists():
        torch.save(studio.sweep(studio.slider(choice), choice.people).half(), file)
    images = torch.load(file, weights_only=True).float()
    return images, studio.figures(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=list(SHEETS), help="some of the settings")
    parser.add_argument("--out", type=Path, default=Path("output/choices"), help="sliders, images and figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(options.out)
    for name in options.only:
        rows = [(choice, *made(studio, choice)) for choice in SHEETS[name]]
        for choice, _, figures in rows:
            log.info(row(choice, figures))
        strip([(choice, images) for choice, images, _ in rows]).save(options.out / f"training_{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
