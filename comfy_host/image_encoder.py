"""An image encoder of ComfyUI (CLIP, SigLIP, DINO) as one function of images that gradients pass through.

ComfyUI's own `encode_image` rounds images to 8 bits, where every gradient ends; this one leaves that out.
"""

from __future__ import annotations

import comfy.clip_model
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel
from einops import rearrange
from torch import Tensor

from .identity import digest_of, weights_hash


class ImageEncoder:
    """phi(images): (B, H, W, 3) in [0, 1] -> (B, D), of unit length.

    The encoder's model must be in use, see `borrow.borrowed`.
    """

    def __init__(self, clip_vision: ClipVisionModel):
        self.clip_vision = clip_vision
        self.device = clip_vision.load_device

    def __call__(self, images: Tensor) -> Tensor:
        """Embed. Where an encoder has one vector for each patch and none for the image, as SigLIP, their mean."""
        pixels = self.pixel_values(images.to(self.device))
        # of LLaVA's encoder a part that is of no use here reads hidden states, and fails without them
        embedded = self.clip_vision.model(pixel_values=pixels, intermediate_output=-2)[2].float()
        return F.normalize(embedded.flatten(1, -2).mean(1) if embedded.ndim > 2 else embedded, dim=-1)

    def pixel_values(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) -> (B, 3, h, w): resized until the shorter side fits, cut in the middle, normalised."""
        encoder = self.clip_vision
        pixels = rearrange(images[..., :3], "b h w c -> b c h w").float()
        if encoder.image_size > 0:
            pixels = _cut(_resized(pixels, _covering(pixels.shape[2:], encoder.image_size)), encoder.image_size)
        else:  # an encoder of images of any shape takes a number of patches
            patch, patches = encoder.config.get("patch_size", 16), encoder.config.get("num_patches", 256)
            size = comfy.clip_model.siglip2_flex_calc_resolution(*pixels.shape[2:], patch, patches)
            pixels = _resized(pixels, size, mode="bilinear")
        mean, deviation = (
            pixels.new_tensor(values)[:, None, None] for values in (encoder.image_mean, encoder.image_std)
        )
        return (pixels.clamp(0, 1) - mean) / deviation

    def digest(self) -> str:
        """What sets this encoder apart from others."""
        return digest_of(weights_hash(self.clip_vision.patcher), self.clip_vision.config)


def _covering(size: torch.Size, side: int) -> tuple[int, int]:
    scale = side / min(size)
    return round(scale * size[0]), round(scale * size[1])


def _resized(pixels: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    return (
        pixels if tuple(pixels.shape[2:]) == tuple(size) else F.interpolate(pixels, size, mode=mode, antialias=True)
    )


def _cut(pixels: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in pixels.shape[2:])
    return pixels[..., top : top + side, left : left + side]
