"""Models from files, for training from the command line: a checkpoint, or its parts one by one."""

from __future__ import annotations

import argparse
from pathlib import Path

import comfy.sd
import comfy.utils

from ..pocket.model import load_pocket
from .recipe import EncoderRecipe, Recipe, VisualRecipe

CLIP_TYPES = tuple(kind.name.lower() for kind in comfy.sd.CLIPType)


def add_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("the model; without any of these it is the pocket model")
    files.add_argument("--checkpoint", type=Path, help="a checkpoint with its text encoder and VAE")
    files.add_argument("--unet", type=Path, help="a diffusion model alone")
    files.add_argument("--clip", type=Path, action="append", help="a text encoder; again for a second and a third")
    files.add_argument("--clip-type", choices=CLIP_TYPES, default=CLIP_TYPES[0], help="which model they are for")
    files.add_argument("--vae", type=Path, help="a VAE")


def load_models(options: argparse.Namespace, recipe: Recipe):
    """(MODEL, CLIP, VAE) as far as the recipe needs them; files of parts stand in for those of the checkpoint.

    Raises ValueError, saying which, for a part that is needed and not there.
    """
    if not (options.checkpoint or options.unet or options.clip or options.vae):
        return load_pocket()
    model = clip = vae = None
    if options.checkpoint:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            str(options.checkpoint), output_vae=True, output_clip=True
        )
    if options.unet:
        model = comfy.sd.load_diffusion_model(str(options.unet))
    if options.clip:
        kind = comfy.sd.CLIPType[options.clip_type.upper()]
        clip = comfy.sd.load_clip(ckpt_paths=[str(path) for path in options.clip], clip_type=kind)
    if options.vae:
        vae = load_vae(options.vae)
    needed = [("a text encoder", "--clip", clip)]
    if not isinstance(recipe, EncoderRecipe):
        needed.append(("a diffusion model", "--unet", model))
    if isinstance(recipe, VisualRecipe):
        needed.append(("a VAE", "--vae", vae))
    for what, option, part in needed:
        if part is None:
            raise ValueError(f"This recipe needs {what}: give a checkpoint that has one, or {option} FILE.")
    return model, clip, vae


def load_vae(path: Path) -> comfy.sd.VAE:
    """Raises ValueError if there is none in the file."""
    state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    if vae.first_stage_model is None:
        raise ValueError(f"{path} holds no VAE that this ComfyUI knows.")
    return vae
