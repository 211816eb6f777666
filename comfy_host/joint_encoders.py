"""Which text encoder was trained together with which vision encoder, and both as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from torch import Tensor

from .image_encoder import ImageEncoder

BATCH = 16  # images encoded at a time
EmbedImages = Callable[[Tensor], Tensor]
EmbedTexts = Callable[[Sequence[str]], Tensor]  # n texts -> (n, E)


@dataclass(frozen=True)
class VisionClass:
    """One architecture of vision encoders.

    name: for messages and tables. config: the part of ComfyUI's configuration that tells it from others.
    """

    name: str
    config: Mapping[str, Any]

    def fits(self, vision: ClipVisionModel) -> bool:
        """Return True if an encoder is of this class."""
        return all(vision.config.get(name) == value for name, value in self.config.items())


def _clip(name: str, width: int, layers: int, projected: int) -> VisionClass:
    config = {"hidden_size": width, "num_hidden_layers": layers, "patch_size": 14, "projection_dim": projected}
    return VisionClass(f"CLIP {name}", {"model_type": "clip_vision_model", **config})


VIT_L, VIT_H, VIT_BIGG = (
    _clip("ViT-L", 1024, 24, 768),
    _clip("ViT-H", 1280, 32, 1024),
    _clip("ViT-bigG", 1664, 48, 1280),
)
CLASSES = (
    *(VIT_L, VIT_H, VIT_BIGG),
    VisionClass("DINOv2 large", {"model_type": "dinov2", "num_hidden_layers": 24}),
    VisionClass("DINOv2 giant", {"model_type": "dinov2", "num_hidden_layers": 40}),
    VisionClass("DINOv3", {"model_type": "dinov3"}),
    VisionClass("SigLIP", {"model_type": "siglip_vision_model"}),
    VisionClass("SigLIP 2", {"model_type": "siglip2_vision_model"}),
)


@dataclass(frozen=True)
class JointEncoder:
    """A text encoder with the class of vision encoders that it was trained together with (arXiv 2103.00020).

    text_name: for messages. text: the class of the part of ComfyUI's CLIP whose pooled output is a projection into
    the joint space.
    """

    text_name: str
    text: type
    vision: VisionClass


JOINT_ENCODERS = (
    JointEncoder("SDXL's clip_g", comfy.sdxl_clip.SDXLClipG, VIT_BIGG),
    JointEncoder("Stable Cascade's clip_g", comfy.sdxl_clip.StableCascadeClipG, VIT_BIGG),
    JointEncoder("SD2's clip_h", comfy.text_encoders.sd2_clip.SD2ClipHModel, VIT_H),
)


def image_embedding(vision: ClipVisionModel) -> EmbedImages:
    """Return a vision encoder as a function from images (n, H, W, 3) in 0..1 to embeddings (n, E) on the CPU.

    They are of unit length; see `ImageEncoder`.
    """
    encoder = ImageEncoder(vision)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        comfy.model_management.load_model_gpu(vision.patcher)
        return torch.cat([encoder(part).cpu() for part in images.split(BATCH)])

    return embed


def vision_name(vision: ClipVisionModel, joint: Sequence[JointEncoder] = JOINT_ENCODERS) -> str:
    """Return what tables call a vision encoder: the name of its class, or else its size.

    joint: pairs whose classes count, beside ComfyUI's.
    """
    for known in (*CLASSES, *(pair.vision for pair in joint)):
        if known.fits(vision):
            return known.name
    width, layers = vision.config.get("hidden_size"), vision.config.get("num_hidden_layers")
    return f"{vision.model_type} of {layers} layers, width {width}"


def text_embedding(clip: CLIP, vision: ClipVisionModel, joint: Sequence[JointEncoder] = JOINT_ENCODERS) -> EmbedTexts:
    """Return the text encoder of a joint pair as a function from n texts to embeddings (n, E).

    joint: the pairs that match. They are told by class: encoders of one width may be of different spaces.
    Raises ValueError that says what would match, if these two were not trained together.
    """
    parts = [part for part in clip.cond_stage_model.children() if isinstance(part, comfy.sd1_clip.SDClipModel)]
    if not any(pair.vision.fits(vision) and type(part) is pair.text for pair in joint for part in parts):
        raise ValueError(_mismatch(clip, vision, joint))
    width = vision.config["projection_dim"]

    def embed(texts: Sequence[str]) -> Tensor:
        pooled = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1] for text in texts]
        return torch.cat(pooled)[:, -width:].float().cpu()  # SD3 puts out clip_l's beside it, before it

    return embed


def _mismatch(clip: CLIP, vision: ClipVisionModel, joint: Sequence[JointEncoder]) -> str:
    """Say what a text and a vision encoder are that do not belong together, and what each belongs with."""
    parts = dict(clip.cond_stage_model.named_children())
    belongs = {name: [pair.vision.name for pair in joint if type(part) is pair.text] for name, part in parts.items()}
    texts = [
        f"{name} of this CLIP belongs with {found[0]}"
        if found
        else f"the output of this CLIP's {name} is no projection into a space of images, and belongs with nothing"
        for name, found in belongs.items()
    ]
    name = vision_name(vision, joint)
    wanted = " or ".join(pair.text_name for pair in joint if pair.vision.fits(vision)) or "no text encoder here"
    pairs = "; ".join(f"{pair.text_name} with {pair.vision.name}" for pair in joint)
    return (
        f"A CLIP score takes a text and a vision encoder that were trained together; got {', '.join(parts)} and "
        f"{name}. {'; '.join(texts)}; {name} belongs with {wanted}. What would do: {pairs}."
    )
