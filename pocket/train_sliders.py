"""Trains the sliders that come with the pack: `python3 dev.py module pocket.train_sliders --only smile hat`.

Each is trained from two prompts on the pocket model, by *Train Slider*'s defaults. What is already there is trained
again only with `--only`.
"""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..comfy_host.text_encoders import encode_prompts
from ..sliders.formats.slider_files import save_slider
from ..training.concept import Concept
from ..training.recipe import TextualRecipe
from ..training.run import Trained, train_textual
from .models.loading import load_pocket
from .world.drawing import SIZE

FOLDER = Path(__file__).with_name("sliders")
PERSON = "portrait of a person"
BATCH = 4
SEED = 0
AUTOMATIC = 0.0  # eta, by auditions
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What one slider is to turn.

    column: of the probe's readings. start: from which fraction of sampling on it is trained, and acts.
    """

    column: str
    less: str
    more: str
    hold: tuple[str, ...] = ()
    start: float = 0.1

    @property
    def recipe(self) -> TextualRecipe:
        concept = Concept(PERSON, self.more, self.less, self.hold, AUTOMATIC)
        return TextualRecipe(concepts=(concept,), seed=SEED, start_percent=self.start)


def _of_a_person(column: str, less: str, more: str, **settings) -> Lesson:
    return Lesson(column, f"{PERSON}, {less}", f"{PERSON}, {more}", **settings)


LESSONS = {
    "age": Lesson(
        "age",
        "portrait of a very young person",
        "portrait of a very old person",
        (
            "with glasses, with a hat",
            "without glasses, without a hat",
            "with glasses, without a hat",
            "without glasses, with a hat",
        ),
    ),
    "smile": Lesson("smile", "portrait of a frowning person", "portrait of a laughing person"),
    "eyes": _of_a_person("eye_size", "tiny eyes", "huge eyes", start=0.0),
    "hair_length": _of_a_person("hair_length", "very short hair", "very long hair", start=0.0),
    "hair_shade": _of_a_person("hair_shade", "black hair", "white hair"),
    "skin": _of_a_person("skin_tone", "very dark skin", "pale skin"),
    "face_width": _of_a_person("face_width", "very narrow face", "very wide face", start=0.0),
    "sky": _of_a_person("sky", "night sky", "noon sky", start=0.0),
    "glasses": _of_a_person("glasses", "without glasses", "with glasses"),
    "repair": _of_a_person("spoiled", "badly drawn, distorted features", "well drawn, clean features"),
}


def trained(pocket, recipe: TextualRecipe, name: str) -> Trained:
    """A slider of the pocket model. pocket: begins with its (MODEL, CLIP, VAE)."""
    model, clip, vae = pocket[:3]
    with torch.inference_mode():  # as ComfyUI runs its nodes
        latents = torch.zeros_like(vae.encode(torch.zeros(BATCH, SIZE, SIZE, 3)))
        made = train_textual(model, encode_prompts(clip, recipe.prompts()), recipe, latents, name)
    assert made is not None  # nobody cancels it
    return made


def train(name: str, pocket, folder: Path) -> Path:
    """Train one slider and store it; its file."""
    lesson, began = LESSONS[name], time.monotonic()
    made = trained(pocket, lesson.recipe, f"pocket {name.replace('_', ' ')}")
    path = folder / f"pocket_{name}.safetensors"
    save_slider(made.slider, path)
    log.info("%-12s %4d steps, %3.0f s", name, made.progress.steps, time.monotonic() - began)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="sliders are stored here")
    parser.add_argument("--only", nargs="+", choices=LESSONS, help="default: all that are not there yet")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    missing = [name for name in LESSONS if not (options.folder / f"pocket_{name}.safetensors").exists()]
    pocket = load_pocket()
    for name in options.only or missing:
        train(name, pocket, options.folder)


if __name__ == "__main__":
    main()
