"""Trains a slider by a recipe, without a browser: `python3 dev.py train RECIPE --out FILE`.

RECIPE is a slider file that says how it was trained, or a JSON file of the same form (Load Recipe shows it). Without
the files of a model it trains on the pocket model. Ctrl-C stops, and what was learned by then is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from tqdm import tqdm

from ..comfy_host.borrow import ModelLost
from ..comfy_host.identity import family
from ..comfy_host.latents import to_model_scale
from ..sliders.formats.atomic_write import check_length
from ..sliders.formats.slider_files import load_slider, save_slider
from ..training.pairs.folders import read_pairs
from ..training.pairs.image_sets import STEP
from ..training.progress import Progress
from ..training.recipe import (
    EncoderRecipe,
    Recipe,
    RunRecord,
    TextualRecipe,
    VisualRecipe,
    recipe_from,
    run_record_from,
)
from ..training.run import RunOptions, Trained, train_text_encoder, train_textual, train_visual
from ..training.visual_samples import encode_sets
from ..training.words import check_words
from .model_files import add_options, load_models

POCKET_SIZE, SIZE = 128, 512
SMALLEST, MULTIPLE = 16, 8  # of --size, as of the size that the nodes for image pairs take


def read_values(path: Path) -> Mapping[str, Any]:
    """Return what a file says of a training, the recipe and the facts. Raises ValueError if it says nothing."""
    about = {}
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
    else:
        info = load_slider(path).info
        values, about = info.recipe, {"family": info.family, "base_model_hash": info.base_model_hash}
    if not values:
        raise ValueError("it was not trained with this pack")
    if not isinstance(values, Mapping):
        raise ValueError(f"a recipe is a JSON object, not a {type(values).__name__}")
    return {**values, **about}


def read_recipe(path: Path) -> Recipe:
    """Raises ValueError, naming the file, if there is no recipe in it."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Recipe, RunRecord]:
    """(the recipe, what else the file says of a slider)."""
    try:
        values = read_values(path)
        return recipe_from(values), run_record_from(values)
    except ValueError as error:
        raise ValueError(f"{path} holds no recipe: {error}") from error


@torch.inference_mode()  # as ComfyUI runs its nodes
def train(recipe: Recipe, facts: RunRecord, options: argparse.Namespace) -> Trained | None:
    """facts: how the recipe's slider was trained, where it is one's."""
    model, clip, vae = load_models(options, recipe)
    if not isinstance(recipe, EncoderRecipe):
        facts = for_family(family(model), facts, options)
    name = options.out.stem
    with tqdm(total=recipe.steps, unit="step") as bar:

        def progress(done: Progress, _) -> None:
            bar.update(done.steps - bar.n)
            bar.set_postfix(loss=f"{done.losses[-1]:.3g}")

        run_options = RunOptions(progress=progress, preview_every=0, checkpoints=options.checkpoints)
        if isinstance(recipe, EncoderRecipe):
            return train_text_encoder(clip, recipe, name, run_options)
        if isinstance(recipe, TextualRecipe):
            run_options = replace(run_options, warnings=check_words(clip, recipe.concepts))
            conditionings = _encoded(clip, recipe.prompts())
            return train_textual(model, conditionings, recipe, _latents(model, facts, options), name, run_options)
        if not isinstance(recipe, VisualRecipe):
            raise ValueError(f"A {type(recipe).__name__} cannot be trained here.")
        if options.pairs is None:
            raise ValueError("The recipe is of a visual slider: say where its images are, with --pairs FOLDER.")
        side = options.size or _side(facts, vae) or _size(options)
        pairs = read_pairs(options.pairs, prompt=_prompt(facts, options), side=side, step=min(STEP, side))
        sets = encode_sets(pairs, vae.encode, to_model_scale(model))
        return train_visual(model, _encoded(clip, [one.prompt for one in pairs]), recipe, sets, name, run_options)


def for_family(of_model: str, facts: RunRecord, options: argparse.Namespace) -> RunRecord:
    """Return the facts without a size in another family's latents, which stand for other sizes in pixels; says so."""
    if options.size is not None or not facts.latent_shape or facts.family == of_model:
        return facts
    size, was_of = _size(options), facts.family or "a family that RECIPE does not name"
    sys.stderr.write(
        f"Note: the recipe's slider was of {was_of}; on {of_model} it is trained at {size} pixels, or give --size.\n"
    )
    return replace(facts, latent_shape=())


def _latents(model, facts: RunRecord, options: argparse.Namespace) -> torch.Tensor:
    """(B, C, ...) empty latents: as many and as large as the options say, else as the recipe's slider had them."""
    batch = options.batch or facts.batch
    if options.size is None and facts.latent_shape:
        return comfy.sample.fix_empty_latent_channels(model, torch.zeros(batch, *facts.latent_shape))
    side = (options.size or _size(options)) // 8
    return comfy.sample.fix_empty_latent_channels(model, torch.zeros(batch, 4, side, side), 8)


def _side(facts: RunRecord, vae) -> int | None:
    """Of the square that has the area of the images that the recipe's slider was trained on, in pixels."""
    if not facts.latent_shape:
        return None
    *_, height, width = facts.latent_shape
    return round(math.sqrt(height * width) * vae.spacial_compression_encode())


def _prompt(facts: RunRecord, options: argparse.Namespace) -> str:
    """Of scenes without a caption: the one that all scenes of the recipe's slider had."""
    if options.prompt is not None:
        return options.prompt
    return facts.scenes[0] if len(facts.scenes) == 1 else ""


def _size(options: argparse.Namespace) -> int:
    return SIZE if options.checkpoint or options.unet else POCKET_SIZE


def _encoded(clip, prompts: Iterable[str]) -> dict[str, list]:
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in dict.fromkeys(prompts)}


@contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Make the first Ctrl-C within the block cancel, as ComfyUI's button does; a second one ends the program."""
    before = signal.getsignal(signal.SIGINT)

    def cancel(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        comfy.model_management.interrupt_current_processing()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        comfy.model_management.interrupt_current_processing(False)


def count(text: str) -> int:
    """Parse a number of images. Raises ArgumentTypeError for what is no whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def pixels(text: str) -> int:
    """Parse the side of an image in pixels. Raises ArgumentTypeError if no latents have that size."""
    if not text.isdecimal() or int(text) < SMALLEST or int(text) % MULTIPLE:
        raise argparse.ArgumentTypeError(f"must be at least {SMALLEST} and a multiple of {MULTIPLE}, got {text!r}")
    return int(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a slider file, or JSON")
    parser.add_argument("--out", type=Path, required=True, help="the slider's file, .safetensors")
    like = "as the slider in RECIPE was trained, else"
    side = f"side of the images in pixels, at least {SMALLEST} and a multiple of {MULTIPLE}"
    usual = f"{like} {SIZE} or, of the pocket model, {POCKET_SIZE}; that too where it is of another family"
    parser.add_argument("--size", type=pixels, help=f"{side} (default: {usual})")
    parser.add_argument("--batch", type=count, help=f"images a step (default: {like} 1)")
    parser.add_argument("--pairs", type=Path, help="folder of image pairs, for a visual slider")
    parser.add_argument("--prompt", help=f"of pairs that have no caption (default: {like} none)")
    parser.add_argument("--checkpoints", type=Path, help="folder to keep the run in, and to go on from")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    options = parsed()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        check_length(options.out)
        if options.out.exists():
            raise ValueError(f"{options.out} is there already.")
        if not os.access(options.out.resolve().parent, os.W_OK):  # checked now: training would fail only at its end
            raise ValueError(f"{options.out} cannot be written: its folder is not there, or may not be written to.")
        recipe, facts = _read(options.recipe)
        with stopped_by_ctrl_c():
            trained = train(recipe, facts, options)
        if trained is None:
            raise ValueError("training was stopped before its first step.")
        save_slider(trained.slider, options.out)
    except comfy.model_management.InterruptProcessingException:
        sys.stderr.write("error: training was stopped before its first step.\n")
        return 1
    except (ValueError, OSError, FloatingPointError, ModelLost) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return reported(trained, recipe, facts, options.out)


def reported(trained: Trained, recipe: Recipe, facts: RunRecord, out: Path) -> int:
    """Says what is not as asked for; the exit code, 0 for a whole run."""
    progress, made = trained.progress, trained.slider.info.recipe
    if facts.pairs and made.get("pairs") != facts.pairs:
        sys.stderr.write("Note: these are not the images, or the sizes, that the recipe's slider was trained on.\n")
    if progress.failure:
        sys.stderr.write(f"{progress.failure} {out} is from before that.\n")
    elif progress.stopped:
        sys.stderr.write(f"Stopped after step {progress.steps} of {recipe.steps}; {out} is the slider so far.\n")
    return 1 if progress.stopped else 0


if __name__ == "__main__":
    sys.exit(main())
