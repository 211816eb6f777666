"""Image pairs: the same scene at several strengths of an attribute, at a size that a model can be trained at.

Images are (H, W, 3) tensors in [0, 1], masks (H, W) in [0, 1]. An image is scaled down and cropped about its
centre to fit a size; it is never stretched and never enlarged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite, log, sqrt

import torch.nn.functional as F
from torch import Tensor

STEP = 64  # pixels: a multiple of this suits every model that ComfyUI loads
MOST = 1.25  # times the wished area


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One scene at two or more strengths.

    images: (H, W, 3) in [0, 1], all of one size. strengths: of the slider, one an image; below 0 for less of the
    attribute, above 0 for more. name: what to call the set. prompt: of the scene, empty for none.
    mask: (H, W) in [0, 1], 1 where the loss counts; None for everywhere. files: where each image comes from, for
    messages.
    Raises ValueError, saying which image, if there are fewer than two, if their number is not that of the
    strengths, if a strength is repeated or not finite, if sizes differ, or if the mask takes in nothing.
    """

    images: tuple[Tensor, ...]
    strengths: tuple[float, ...]
    name: str = ""
    prompt: str = ""
    mask: Tensor | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise ValueError(f"{self._title}: {len(self.images)} image; a pair takes two or more.")
        if len(self.images) != len(self.strengths):
            raise ValueError(f"{self._title}: {len(self.images)} images, but {len(self.strengths)} strengths.")
        if not all(isfinite(strength) for strength in self.strengths):
            raise ValueError(f"{self._title}: strengths must be finite numbers, got {self._listed_strengths()}.")
        if len(set(self.strengths)) < len(self.strengths):
            raise ValueError(f"{self._title}: two images have the same strength: {self._listed_strengths()}.")
        for index, image in enumerate(self.images):
            if image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"{self.label(index)}: an image is (height, width, 3), got {tuple(image.shape)}.")
            if image.shape != self.images[0].shape:
                raise ValueError(
                    f"{self._title}: {self.label(0)} is {_size(self.images[0])} pixels, {self.label(index)} is "
                    f"{_size(image)}. The images of a pair must have one size."
                )
        if self.mask is not None:
            self._check_mask(self.mask)

    def _check_mask(self, mask: Tensor) -> None:
        if mask.shape != self.images[0].shape[:2]:
            shape = _size(mask) if mask.ndim == 2 else tuple(mask.shape)
            raise ValueError(
                f"{self._title}: the mask is {shape} pixels, {self.label(0)} is {_size(self.images[0])}. "
                f"They must have one size."
            )
        if not mask.any():
            raise ValueError(f"{self._title}: the mask is black everywhere, so that nothing would be learned.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.images[0].shape[:2]
        return height, width

    @property
    def _title(self) -> str:
        return f"Image pair '{self.name}'" if self.name else "Image pair"

    def label(self, index: int) -> str:
        """Return what to call an image in a message: its file, or its strength."""
        return self.files[index] if self.files else f"the image at strength {self.strengths[index]:g}"

    def _listed_strengths(self) -> str:
        return ", ".join(f"{self.label(i)} at {s:g}" for i, s in enumerate(self.strengths))


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """The sets a visual slider is trained on: the value of an SLIDER_PAIRS socket. Raises ValueError for none."""

    sets: tuple[ImageSet, ...]

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("There are no image pairs.")

    def __len__(self) -> int:
        return len(self.sets)

    def __iter__(self) -> Iterator[ImageSet]:
        return iter(self.sets)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Every strength that occurs, rising."""
        return tuple(sorted({strength for image_set in self.sets for strength in image_set.strengths}))

    def scaled_to(self, strongest: float) -> ImagePairs:
        """With all strengths multiplied by one number, so that the largest, up or down, is `strongest`.

        Raises ValueError unless it is a finite number above 0.
        """
        if not (isfinite(strongest) and strongest > 0):
            raise ValueError(f"The strongest strength must be a number above 0, got {strongest}.")
        factor = strongest / max(abs(strength) for strength in self.strengths)
        return ImagePairs(tuple(replace(s, strengths=tuple(factor * x for x in s.strengths)) for s in self.sets))


def pairs_from_batches(less: Tensor, more: Tensor, mask: Tensor | None = None, prompt: str = "") -> ImagePairs:
    """Pair image i of one batch, at strength -1, with image i of the other, at +1.

    less, more: (B, H, W, C), C >= 3, in [0, 1]; what follows colour is dropped. mask: (H, W), (1, H, W) for all
    pairs, or (B, H, W) for each.
    Raises ValueError if the batches or the masks differ in number, or if ImageSet finds fault with a pair.
    """
    if len(less) != len(more):
        raise ValueError(f"Image pairs: {len(less)} images of less, but {len(more)} of more. Each needs its partner.")
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-2:])
        if len(mask) not in (1, len(less)):
            raise ValueError(f"Image pairs: {len(mask)} masks for {len(less)} pairs; there must be one, or one each.")
    return ImagePairs(
        tuple(
            ImageSet(
                images=(less[i, ..., :3], more[i, ..., :3]),
                strengths=(-1.0, 1.0),
                name=str(i + 1),
                prompt=prompt,
                mask=None if mask is None else mask[i % len(mask)],
            )
            for i in range(len(less))
        )
    )


def bucket(size: tuple[int, int], side: int, step: int = STEP) -> tuple[int, int]:
    """Return the (height, width) to train at for an image of this size, both in pixels.

    Multiples of `step`, no larger than the image, that lose the least to cropping among the few whose area is
    close to side * side, or to the image's own where that is smaller: at most a quarter above it.
    Raises ValueError if the image is smaller than one step, if side is, or if the image is so long and narrow
    that no such size keeps half of it.
    """
    height, width = size
    if side < step:
        raise ValueError(f"The training size must be at least one step of {step} pixels, got {side}.")
    if min(height, width) < step:
        raise ValueError(
            f"an image of {width} x {height} pixels is too small; the least is {step} in both directions."
        )
    if height % step == width % step == 0 and height * width <= MOST * side * side:
        return size  # nothing is cropped, and a prepared set is left unchanged
    shrink = min(1.0, side / sqrt(height * width))
    wished = shrink * shrink * height * width

    def multiples(length: float, limit: int) -> set[int]:
        """Return the two multiples next to a length, within what the image has."""
        return {min(max(n, 1), limit // step) * step for n in (int(length // step), int(length // step) + 1)}

    def nearest(length: float, limit: int) -> int:
        return min(max(round(length / step), 1), limit // step) * step

    heights, widths = multiples(shrink * height, height), multiples(shrink * width, width)
    sizes = {(h, w) for h in heights for w in widths}
    sizes |= {(h, nearest(h * width / height, width)) for h in heights}
    sizes |= {(nearest(w * height / width, height), w) for w in widths}
    near = [hw for hw in sizes if hw[0] * hw[1] <= MOST * wished]
    best = max(near, key=lambda hw: (round(kept(size, hw), 6), -abs(log(hw[0] * hw[1] / wished)), hw), default=None)
    if best is None or kept(size, best) < 0.5:
        raise ValueError(
            f"an image of {width} x {height} pixels is too long for a training size of {side} in steps of {step}; "
            f"choose a larger size or smaller steps."
        )
    return best


def kept(size: tuple[int, int], target: tuple[int, int]) -> float:
    """Return the share of an image, in (0, 1], that is left when it is scaled to the target size and cropped."""
    aspects = size[1] / size[0], target[1] / target[0]
    return min(aspects) / max(aspects)


def prepare(image_set: ImageSet, side: int, step: int = STEP) -> ImageSet:
    """Return the set at its bucket's size: every image and the mask scaled and cropped alike.

    Raises ValueError, naming the set's first image, if it is too small. A prepared set is left as it is.
    """
    try:
        target = bucket(image_set.size, side, step)
    except ValueError as error:
        raise ValueError(f"{image_set.label(0)}: {error}") from None
    mask = image_set.mask
    prepared = replace(
        image_set,
        images=tuple(cover(image, target, "bicubic") for image in image_set.images),
        mask=None,
    )
    if mask is None:
        return prepared
    return replace(prepared, mask=cover(mask[..., None], target, "bilinear")[..., 0])


def cover(image: Tensor, target: tuple[int, int], mode: str) -> Tensor:
    """(H, W, C) scaled to cover the target (height, width), and cropped to it about the centre.

    mode: "bicubic" or "bilinear", smoothed against aliasing.
    """
    height, width = image.shape[:2]
    if (height, width) == target:
        return image
    scale = max(target[0] / height, target[1] / width)
    scaled = (max(target[0], round(height * scale)), max(target[1], round(width * scale)))
    if scaled != (height, width):
        channels_first = image.movedim(-1, 0)[None].float()
        image = F.interpolate(channels_first, scaled, mode=mode, antialias=True, align_corners=False)
        image = image[0].movedim(0, -1).clamp(0, 1)
    top, left = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
    return image[top : top + target[0], left : left + target[1]].contiguous()


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
