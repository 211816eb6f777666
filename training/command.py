"""Trains a slider by a recipe, without a browser: `python3 dev.py train RECIPE --out FILE`.

RECIPE is a slider file that says how it was trained, or a JSON file of the same form (Load Recipe shows it). Without
--checkpoint it trains on the pocket model.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import comfy.sample
import comfy.sd
import torch
from tqdm import tqdm

from ..pocket.model import load_pocket
from ..sliders.files import load_slider, save_slider
from .loop import Progress
from .pair_folders import read_pairs
from .pairs import STEP
from .recipe import Recipe, TextualRecipe, recipe_from
from .run import Trained, Watch, train_slider, train_visual
from .visual import encoded

POCKET_SIZE, SIZE = 64, 512


def read_recipe(path: Path) -> Recipe:
    """Raises ValueError, naming the file, if there is no recipe in it."""
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            values = load_slider(path).info.recipe
        if not values:
            raise ValueError("it was not trained with this pack")
        return recipe_from({k: v for k, v in values.items() if k not in ("family", "base_model_hash")})
    except ValueError as error:
        raise ValueError(f"{path} holds no recipe: {error}") from error


def load_model(checkpoint: Path | None):
    """(MODEL, CLIP, VAE) of a checkpoint with all three in it, or of the pocket model."""
    if checkpoint is None:
        return load_pocket()
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)
    if clip is None or vae is None:
        raise ValueError(f"{checkpoint} has no text encoder or no VAE in it; training from here needs both.")
    return model, clip, vae


@torch.inference_mode()  # as the host runs its nodes
def train(recipe: Recipe, options: argparse.Namespace) -> Trained | None:
    model, clip, vae = load_model(options.checkpoint)
    size = options.size or (SIZE if options.checkpoint else POCKET_SIZE)
    name = options.out.stem
    with tqdm(total=recipe.steps, unit="step") as bar:

        def progress(done: Progress, _) -> None:
            bar.update(done.steps - bar.n)
            bar.set_postfix(loss=f"{done.losses[-1]:.3g}")

        watch = Watch(progress=progress, preview_every=0, checkpoints=options.checkpoints)
        if isinstance(recipe, TextualRecipe):
            empty = torch.zeros(options.batch, 4, size // 8, size // 8)
            latents = comfy.sample.fix_empty_latent_channels(model, empty, 8)
            return train_slider(model, _encoded(clip, recipe.prompts()), recipe, latents, name, watch)
        if options.pairs is None:
            raise ValueError("The recipe is of a visual slider: say where its pictures are, with --pairs FOLDER.")
        pairs = read_pairs(options.pairs, side=size, step=min(STEP, size))
        sets = encoded(pairs, vae.encode, model.model.process_latent_in)
        return train_visual(model, _encoded(clip, [one.prompt for one in pairs]), recipe, sets, name, watch)


def _encoded(clip, prompts: Iterable[str]) -> dict[str, list]:
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in dict.fromkeys(prompts)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a slider file, or JSON")
    parser.add_argument("--out", type=Path, required=True, help="the slider's file, .safetensors")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint with its text encoder and VAE")
    parser.add_argument("--size", type=int, help=f"side of the pictures in pixels (default: {SIZE})")
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    parser.add_argument("--pairs", type=Path, help="folder of image pairs, for a visual slider")
    parser.add_argument("--checkpoints", type=Path, help="folder to keep the run in, and to go on from")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.out.exists():
            raise ValueError(f"{options.out} is there already.")
        trained = train(read_recipe(options.recipe), options)
        if trained is None:
            raise ValueError("training was stopped before its first step.")
        save_slider(trained.slider, options.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if trained.progress.broken:
        sys.stderr.write(f"{trained.progress.broken} {options.out} is from before that.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
