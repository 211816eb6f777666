"""Cross-talk of the pocket sliders age, glasses and hair shade, bare and after each option of Combine Sliders.

    python3 dev.py bench crosstalk [--seeds 16] [--strength 1] [--train 60]

Effects are measured on one set of seeds, from which the mixture by effect is made; every matrix that is printed and
drawn is measured on another set. The row "together" is all sliders of a stack turned at once. --train trains short
sliders instead of taking those that come with the pack.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import _models  # noqa: F401  (makes ComfyUI importable)
import numpy as np
import torch
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings
from concept_sliders.evaluation.crosstalk import Effects, effects_of
from concept_sliders.evaluation.crosstalk_tables import as_text, sentence
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.matrix_plot import draw_crosstalk
from concept_sliders.evaluation.measuring import measure
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.evaluation.sweep_sampling import Source
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.train_sliders import FOLDER, LESSONS, PERSON
from concept_sliders.sliders.budget import within_budget
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.merge_sliders import merge
from concept_sliders.sliders.mixing import gram_schmidt, mixed, without_side_effects
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.weight_products import weight_products
from concept_sliders.training.run import train_textual
from PIL import Image, ImageDraw, ImageFont

NAMES = ("age", "glasses", "hair_shade")
BUDGET = 1.0
TITLE = 30  # pixels above each picture
log = logging.getLogger("crosstalk")


@dataclass(frozen=True)
class Choice:
    """What is measured. strength: of every slider, which a budget turns down."""

    title: str
    stack: Stack
    strength: float


class Studio:
    """The pocket model with its probe, and how it is sampled."""

    def __init__(self, steps: int, cfg: float):
        with torch.inference_mode():
            self.model, self.clip, vae, _ = load_pocket()
        settings = SamplerSettings(steps, cfg, "euler", "normal")
        self.source = Source(self.model, self.clip, vae, torch.zeros(1, 8, 16, 16), settings)
        probe = load_probe()
        self.instruments = Instruments(probe=lambda images: dict(zip(COLUMNS, probe.read(images).values.T)))

    def effects(self, stack: Stack, strength: float, seeds: range) -> Effects:
        plan = SweepPlan(stack, (PERSON,), tuple(seeds), (-strength, strength), batch_size=2 * len(stack) + 1)
        with torch.inference_mode():
            return effects_of(measure(self.source, plan, self.instruments, lambda done, of: None))

    def slider(self, name: str, steps: int, folder: Path) -> Slider:
        """One that comes with the pack or, with steps, a short-trained one, kept in the folder."""
        if not steps:
            return load_slider(FOLDER / f"pocket_{name}.safetensors")
        path = folder / f"{name}_{steps}.safetensors"
        if not path.exists():
            recipe = LESSONS[name].recipe
            plain = replace(recipe.concepts[0], preserve=(), eta=0.45)
            recipe = replace(recipe, concepts=(plain,), steps=steps, learning_rate=2e-3, rollout_steps=8)
            with torch.inference_mode():
                said = {p: self.clip.encode_from_tokens_scheduled(self.clip.tokenize(p)) for p in recipe.prompts()}
                trained = train_textual(self.model, said, recipe, torch.zeros(2, 8, 16, 16), name)
            assert trained is not None  # nobody cancels it
            save_slider(trained.slider, path)
        return load_slider(path)


def choices(stack: Stack, measured: Effects, strength: float) -> list[Choice]:
    """The stack as it is and after each option. measured: its effects, on seeds that are not judged on."""
    gram = weight_products([placed.slider.layers for placed in stack]).gram
    by_effect = without_side_effects(measured.matrix, measured.errors, measured.own)
    _, (factor,) = within_budget(stack, BUDGET)
    return [
        Choice("as they are", stack, strength),
        Choice(f"within a budget of {BUDGET:g}: strengths times {factor:.2f}", stack, factor * strength),
        Choice("orthogonal by weights", mixed(stack, gram_schmidt(gram)), strength),
        Choice("orthogonal by effect", mixed(stack, by_effect), strength),
    ]


def with_all_together(stack: Stack) -> Stack:
    """The stack, and after it one slider that is all of them."""
    layers = merge([(placed.slider, 1.0) for placed in stack]).layers
    return stack + Stack.of(Slider("together", layers))


def leak(effects: Effects, sliders: int) -> tuple[float, float]:
    """Of the sliders, the mean effect on what others are for, and on what none is for, in parts of the own effect."""
    own = list(effects.own[:sliders])
    matrix = effects.matrix[:sliders].abs()
    parts = matrix / matrix[range(sliders), own][:, None]
    others = ~torch.eye(sliders, dtype=torch.bool)
    free = [j for j in range(matrix.shape[1]) if j not in own]
    return float(parts[:, own][others].mean()), float(parts[:, free].mean())


def sheet(pictures: list[tuple[str, torch.Tensor]]) -> Image.Image:
    """Draw pictures (1, H, W, 3) one below the other, each under its title."""
    height = sum(TITLE + picture.shape[1] for _, picture in pictures)
    drawn = Image.new("RGB", (max(picture.shape[2] for _, picture in pictures), height), (255, 255, 255))
    top = 0
    for title, picture in pictures:
        ImageDraw.Draw(drawn).text((16, top + 8), title, (0, 0, 0), ImageFont.load_default(18))
        drawn.paste(Image.fromarray(np.uint8(picture[0].numpy() * 255)), (0, top + TITLE))
        top += TITLE + picture.shape[1]
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16, help="to measure on, and as many others to judge on")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=12, help="of sampling")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train short sliders")
    parser.add_argument("--out", type=Path, default=Path("output/crosstalk"), help="the picture, and trained sliders")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(options.steps, options.cfg)
    loaded = {name: studio.slider(name, options.train, options.out) for name in NAMES}
    stack = sum((Stack.of(Slider(name, slider.layers)) for name, slider in loaded.items()), Stack())
    measured = studio.effects(stack, options.strength, range(options.seeds))
    pictures, rows = [], []
    for choice in choices(stack, measured, options.strength):
        judged = studio.effects(
            with_all_together(choice.stack), choice.strength, range(options.seeds, 2 * options.seeds)
        )
        cosines = weight_products([p.slider.layers for p in with_all_together(choice.stack)]).cosines
        log.info("\n%s\n%s", choice.title, as_text(judged, cosines))
        for slider in range(len(stack)):
            log.info(sentence(judged, slider))
        rows.append((choice.title, *leak(judged, len(stack))))
        pictures.append((choice.title, draw_crosstalk(judged, cosines)))
    log.info("\n| | on what others are for | on the rest |\n|---|---|---|")
    for title, others, rest in rows:
        log.info("| %s | %.2f | %.2f |", title, others, rest)
    sheet(pictures).save(options.out / "crosstalk.png")


if __name__ == "__main__":
    main()
