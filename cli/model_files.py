"""Models from files, for training from the command line: a checkpoint, or its parts one by one."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import comfy.text_encoders.lt
import comfy.utils
from safetensors import SafetensorError

from ..comfy_host.errors import is_out_of_memory
from ..pocket.models.loading import load_pocket
from ..training.recipe import EncoderRecipe, Recipe, VisualRecipe

_OLD_CLIP = "transformer.resblocks.0.ln_1.weight"  # of CLIP by its first names, which ComfyUI converts
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
        return load_pocket()[:3]
    model = clip = vae = None
    if options.checkpoint:
        with _named(options.checkpoint, "checkpoint"):
            model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
                str(options.checkpoint),
                output_model=not isinstance(recipe, EncoderRecipe),
                output_vae=isinstance(recipe, VisualRecipe),
            )
        if vae is not None and vae.first_stage_model is None:  # ComfyUI's stand-in where a checkpoint has none
            vae = None
    if options.unet:
        with _named(options.unet, "diffusion model"):
            model = comfy.sd.load_diffusion_model(str(options.unet))
    if options.clip:
        clip = load_clip(options.clip, comfy.sd.CLIPType[options.clip_type.upper()])
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


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """ComfyUI's errors over a file within the block, as ValueErrors that name it."""
    try:
        yield
    except (RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path} holds no {what} that this ComfyUI knows: {str(error).strip()}") from error


def load_clip(paths: Sequence[Path], kind: comfy.sd.CLIPType) -> comfy.sd.CLIP:
    """Raises ValueError, naming it, for a file that holds no text encoder: ComfyUI would go on with another's
    untrained weights.
    """
    for path in paths:
        with _named(path, "text encoder"):
            state = comfy.utils.load_torch_file(str(path), safe_load=True)
        beside = comfy.text_encoders.lt.sd_detect([state])  # LTX-2 keeps a part of its own in another file
        if comfy.sd.detect_te_model(state) is None and _OLD_CLIP not in state and not beside:
            raise ValueError(f"{path} holds no text encoder that this ComfyUI knows.")
    return comfy.sd.load_clip(ckpt_paths=[str(path) for path in paths], clip_type=kind)


def load_vae(path: Path) -> comfy.sd.VAE:
    """Raises ValueError if there is none in the file."""
    with _named(path, "VAE"):
        state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    if vae.first_stage_model is None:
        raise ValueError(f"{path} holds no VAE that this ComfyUI knows.")
    return vae
