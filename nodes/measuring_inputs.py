"""What *Measure Slider* samples, what it measures with, and of which texts, from its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..comfy_host.joint_encoders import (
    JOINT_ENCODERS,
    EmbedImages,
    JointEncoder,
    VisionClass,
    image_embedding,
    text_embedding,
    vision_name,
)
from ..comfy_host.latents import fit_latent
from ..comfy_host.seeded_sampling import SamplerSettings, first_entry
from ..evaluation.instruments import Instruments, ReadAttributes
from ..evaluation.lpips import Lpips
from ..evaluation.measurements import EditTexts
from ..evaluation.sweep_plan import SweepPlan, parse_seeds
from ..evaluation.sweep_sampling import Source
from ..pocket.measuring.probe import COLUMNS, load_probe
from ..pocket.models.text import PocketTextModel
from ..pocket.models.unet import PocketModel
from ..pocket.models.vision import CONFIG
from ..sliders.stack import Stack
from ..sliders.sweep import parse_values
from ..sliders.units import RAW
from .model_folders import find_lpips

MEASURE = "Measure Slider"
NO_LPIPS = "none"
VISION_ENCODERS = "CLIP, SigLIP, DINOv2 and DINOv3"
POCKET_VISION = VisionClass(
    "pocket vision", {name: CONFIG[name] for name in ("model_type", "hidden_size", "num_hidden_layers", "patch_size")}
)
JOINT = (*JOINT_ENCODERS, JointEncoder("the pocket model's text encoder", PocketTextModel, POCKET_VISION))


def instruments_of(
    model: ModelPatcher,
    clip: CLIP,
    clip_vision: ClipVisionModel | None,
    image_encoder: ClipVisionModel | None,
    score_clip: CLIP | None,
    lpips: str,
    node: str = MEASURE,
) -> tuple[Instruments, list[str]]:
    """Put together what is at hand, and say in a line each what could not be used.

    score_clip: the text encoder of the CLIP score; None takes the model's own, if it belongs with `clip_vision`.
    lpips: a file of a network, or "none". node: the node that asks, for messages.
    Raises ValueError if `score_clip` does not belong with `clip_vision`, the file is of another network, or there is
    nothing to measure with.
    """
    encoders: dict[str, EmbedImages] = {}
    for vision in (clip_vision, image_encoder):
        if vision is not None:
            encoders[_free_name(vision_name(vision, JOINT), encoders)] = image_embedding(vision)
    joint, warnings = None, []
    if score_clip is not None and clip_vision is None:
        raise ValueError(f"{node}: score_clip is for a CLIP score; connect the clip_vision that belongs with it.")
    if clip_vision is not None:
        try:
            joint = next(iter(encoders)), text_embedding(score_clip or clip, clip_vision, JOINT)
        except ValueError as error:
            if score_clip is not None:
                raise ValueError(f"{node}: score_clip does not belong with clip_vision. {error}") from error
            warnings.append(f"No CLIP score. {error} Connect such a CLIP to score_clip, or another clip_vision.")
    network, probe = None if lpips == NO_LPIPS else _load_lpips(lpips), _probe_of(model)
    if not (encoders or network or probe):
        raise ValueError(
            f"{node}: this model is not the pocket model, whose images a probe reads, and there is nothing to "
            f"measure with. Connect a CLIP vision encoder to clip_vision: Load CLIP Vision loads {VISION_ENCODERS}."
        )
    return Instruments(encoders, joint, network, probe), warnings


def with_weights(clip: CLIP | None, vae: VAE | None, node: str = MEASURE) -> tuple[CLIP, VAE]:
    """Return both. Raises ValueError, naming the node, for what a checkpoint without one of them gives instead."""
    if clip is None:
        raise ValueError(f"{node}: the checkpoint has no CLIP. Connect the model's text encoder to clip (Load CLIP).")
    if vae is None or getattr(vae, "patcher", None) is None:
        raise ValueError(f"{node}: the checkpoint has no VAE. Connect the model's VAE to vae (Load VAE).")
    return clip, vae


def source_of(
    model: ModelPatcher, clip: CLIP, vae: VAE, latent: dict[str, Any], negative: str, sampling: Mapping[str, Any]
) -> Source:
    """Return what images are sampled from. sampling: the fields of SamplerSettings."""
    return Source(model, clip, vae, first_entry(fit_latent(model, latent)), SamplerSettings(**sampling), negative)


def plan_of(sliders: Stack, prompts: str, seeds: str, strengths: str, batch_size: int, units: str = RAW) -> SweepPlan:
    """Read what is to be sampled. prompts: one a line; an empty text is one empty prompt. units: of the strengths."""
    wanted = tuple(sorted({*parse_values(strengths)} - {0.0}))
    return SweepPlan(sliders, tuple(lines_of(prompts)) or ("",), parse_seeds(seeds), wanted, batch_size, units)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that are not empty, once each."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def edit_texts(sliders: Stack, more: str, less: str, node: str = MEASURE) -> list[EditTexts]:
    """Return the texts of each slider's ends: one line for each slider, or, where empty, the labels in its file.

    node: the node that asks, for messages.
    Raises ValueError for another number of lines.
    """
    ends = []
    for name, text in (("more", more), ("less", less)):
        lines = [line.strip() for line in text.strip().splitlines()] or [""] * len(sliders)
        if len(lines) != len(sliders):
            raise ValueError(
                f"{node}: {name} takes a line for each slider of the stack, {len(sliders)}, or nothing at "
                f"all; got {len(lines)} lines."
            )
        ends.append([line or getattr(each.slider.info, name) for line, each in zip(lines, sliders)])
    return [EditTexts(*texts) for texts in zip(*ends)]


def missing_texts(sliders: Stack, texts: Sequence[EditTexts], instruments: Instruments) -> list[str]:
    """Say in a line each which scores are left out for want of a text."""
    if instruments.joint is None:
        return []
    lines = []
    for end, scores in (("more", "CLIP score, CR, CSM and OS"), ("less", "CR, CSM and OS")):
        names = [each.slider.name for each, text in zip(sliders, texts) if not getattr(text, end)]
        if names:
            lines.append(f"No {scores} for {', '.join(names)}: no label in the file, and no text in {end}.")
    return lines


def _load_lpips(name: str) -> Lpips:
    path = find_lpips(name)
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    try:
        return Lpips(weights, comfy.model_management.get_torch_device())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _probe_of(model: ModelPatcher) -> ReadAttributes | None:
    """Return the probe of the world that a pocket model draws; None for any other model."""
    if not isinstance(model.model, PocketModel):
        return None
    probe = load_probe()

    def read(images: Tensor) -> dict[str, Tensor]:
        readings = probe.read(images)
        return {name: readings[name] for name in COLUMNS}

    return read


def _free_name(name: str, taken: dict[str, EmbedImages]) -> str:
    return f"{name}, second" if name in taken else name
