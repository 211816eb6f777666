"""The names of layers as trainers spell them: the same path behind other wrappers, with other joiners."""

from __future__ import annotations

from collections.abc import Callable

# By who writes so, from a path with dots
SPELLINGS: dict[str, Callable[[str], str]] = {
    "kohya, musubi-tuner": lambda path: f"lora_unet_{underscored(path)}",
    "kohya of a compiled model": lambda path: f"lora_unet__orig_mod_{underscored(path)}",
    "SimpleTuner, a joiner at the end": lambda path: f"lora_unet_{underscored(path)}_",
    "Wan Fun, two joiners": lambda path: f"lora_unet__{underscored(path)}",
    "OneTrainer": lambda path: f"lora_transformer_{underscored(path)}",
    "LyCORIS": lambda path: f"lycoris_{underscored(path)}",
    "DiffSynth": lambda path: path,
    "DiffSynth with its pipeline": lambda path: f"pipe.dit.{path}",
    "diffusers": lambda path: f"transformer.{path}",
    "SimpleTuner with PEFT": lambda path: f"transformer.base_model.model.{path}",
    "PEFT": lambda path: f"base_model.model.{path}",
    "a checkpoint": lambda path: f"model.diffusion_model.{path}",
    "distributed and compiled": lambda path: f"module._orig_mod.{path}",
    "dots and underscores": lambda path: f"lora_unet.{path.replace('.', '_', 2)}",
}


def underscored(path: str) -> str:
    return path.replace(".", "_")
