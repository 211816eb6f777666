"""What the sliders of the example workflows do, in numbers: repair by words, a shirt by pairs, and the early stop.

    python3 dev.py bench examples [--only repair shirt stop] [--people 32]

Each is trained on the pocket model, swept over the same people, and read back: the share of spoiled images, the
colour of the shirt, age; and how far everything else moved, as a mean of the ranges of what the probe reads.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

import _models  # noqa: F401  (makes ComfyUI importable)
import nodes
import torch
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.pocket.world import shirt_pairs
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.world.portrait import BINARY, CONTINUOUS
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.cli.train import read_recipe
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe, VisualRecipe
from concept_sliders.training.run import Trained, train_textual, train_visual
from concept_sliders.training.visual_samples import encode_sets
from torch import Tensor

PERSON = "portrait of a person"
AGE = Concept(PERSON, "portrait of a very old person", "portrait of a very young person", eta=0.45)
READ = (*CONTINUOUS, *BINARY)
BATCH, FIRST_SEED, SAMPLING_STEPS, GUIDANCE = 4, 900, 12, 3.0
log = logging.getLogger("bench")


class Studio:
    """The pocket model, its probe, and people to look at."""

    def __init__(self, people: int):
        self.people, self.probe = people, load_probe()
        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_pocket()

    @torch.inference_mode()
    def textual(self, recipe: TextualRecipe) -> Trained:
        latents = torch.zeros(BATCH, 8, 16, 16)
        return whole(train_textual(self.model, self._said(recipe.prompts()), recipe, latents, "words"))

    @torch.inference_mode()
    def visual(self, recipe: VisualRecipe) -> Trained:
        sets = encode_sets(
            read_pairs(shirt_pairs.FOLDER / "pocket_shirt"), self.vae.encode, self.model.model.process_latent_in
        )
        return whole(train_visual(self.model, self._said([shirt_pairs.PROMPT]), recipe, sets, "pairs"))

    @torch.inference_mode()
    def sweep(self, slider: Slider, prompt: str, strengths: Sequence[float]) -> Tensor:
        """(people * strengths, H, W, 3), person by person."""
        columns, said = len(strengths), self._said([prompt, ""])
        rows = self.people * columns
        latent = {"samples": torch.zeros(rows, 8, 16, 16), "batch_index": [row // columns for row in range(rows)]}
        model = apply_sliders(self.model, Stack.of(slider).swept(0, strengths, self.people))
        (made,) = nodes.common_ksampler(
            model, FIRST_SEED, SAMPLING_STEPS, GUIDANCE, "euler", "simple", said[prompt], said[""], latent
        )
        return self.vae.decode(made["samples"])

    def tell(self, name: str, slider: Slider, prompt: str, strengths: Sequence[float], read=None) -> None:
        """name: of the attribute that the slider is for. read: (B, H, W, 3) -> (B,) of it; else the probe."""
        images = self.sweep(slider, prompt, strengths)
        along = (read or self.column(name))(images).view(self.people, -1).mean(0)
        values = self.probe.read(images).values.view(self.people, len(strengths), -1).mean(0)
        named = [COLUMNS.index(other) for other in READ if other != name]
        moved = (values[-1] - values[0]).abs()[named].mean()
        at = ", ".join(f"{value:.2f} at {strength:+g}" for value, strength in zip(along.tolist(), strengths))
        log.info("%s, %r: %s; all else moved %.3f", name, prompt, at, moved)

    def column(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda images: self.probe.read(images)[name]

    def _said(self, prompts) -> dict[str, list]:
        return encode_prompts(self.clip, prompts)


def whole(trained: Trained | None) -> Trained:
    """Return what was trained. Raises RuntimeError if it was cancelled before its first step."""
    if trained is None:
        raise RuntimeError("The training was cancelled.")
    return trained


def repair(studio: Studio) -> None:
    recipe = read_recipe(shirt_pairs.FOLDER.parents[1] / "recipes" / "pocket_repair.json")
    assert isinstance(recipe, TextualRecipe)
    slider = studio.textual(recipe).slider
    for prompt in recipe.concepts[0].prompts():  # of good images, and of spoiled ones
        studio.tell("spoiled", slider, prompt, (-1.5, -1.0, 0.0, 1.0, 1.5))


def shirt(studio: Studio) -> None:
    recipe = VisualRecipe(method="ADDifT", steps=300, sets=shirt_pairs.COUNT, fit_strength=True)
    slider = studio.visual(recipe).slider
    studio.tell("redness of the shirt", slider, shirt_pairs.PROMPT, (-1.0, -0.5, 0.0, 0.5, 1.0), shirt_pairs.redness)


def stop(studio: Studio) -> None:
    """The same training with and without patience."""
    for patience in (3, 0):
        trained = studio.textual(TextualRecipe(concepts=(AGE,), steps=600, learning_rate=2e-3, patience=patience))
        log.info("patience %d: ended after %d of 600 steps", patience, trained.progress.steps)
        studio.tell("age", trained.slider, PERSON, (-1.0, 0.0, 1.0))


EXAMPLES = {"repair": repair, "shirt": shirt, "stop": stop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=list(EXAMPLES), help="some of them")
    parser.add_argument("--people", type=int, default=32, help="to measure on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    studio = Studio(options.people)
    for name in options.only:
        EXAMPLES[name](studio)


if __name__ == "__main__":
    main()
