"""Sampling a sweep: the images of a plan, batch by batch, for whoever looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..comfy_host.apply import apply_sliders
from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.errors import InterruptProcessingException, is_out_of_memory, stop_if_cancelled
from ..comfy_host.memory import free_unused
from ..comfy_host.preview_images import VAE, images_of
from ..comfy_host.seeded_sampling import SamplerSettings, sample_seeds
from ..comfy_host.text_encoders import CLIP, apply_to_clip, encode_prompts
from .sweep import Sweep
from .sweep_plan import PlannedImage, SweepPlan

THUMBNAIL = 256  # pixels of the longer side of what is kept of an image

ReportImages = Callable[[int, int], None]  # images made, of how many
See = Callable[[Sequence[PlannedImage], Tensor], None]  # a batch, and its images (n, H, W, 3) in 0..1


@dataclass(frozen=True)
class Source:
    """What images are sampled from.

    latent: one entry (1, C, ...) of the shape to sample at. negative: the negative prompt, of all images.
    """

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    latent: Any
    settings: SamplerSettings
    negative: str = ""


def sample_sweep(source: Source, plan: SweepPlan, report: ReportImages, see: See = lambda *batch: None) -> Sweep:
    """Sample the images of a plan, without changing the model.

    report: called after every batch. see: given every batch in full size before it counts as made; if it raises,
    nothing of the batch is kept. A run that is cancelled gives what it has sampled so far. Where memory does not hold
    a batch, batches are halved.
    Raises InterruptProcessingException if it is cancelled before any image with a slider, ValueError if a slider does
    not fit the model, and ComfyUI's out-of-memory error if there is no room for a single image.
    """
    sampler, made, thumbnails, cancelled = _Sampler(source, plan), [], [], False
    try:
        for batch in plan.batches():
            stop_if_cancelled()
            images = sampler.images(batch)
            small = _thumbnails(images).cpu()
            see(batch, images)
            made += batch
            thumbnails.append(small)
            report(len(made), plan.count)
    except InterruptProcessingException:
        if all(planned.slider is None for planned in made):
            raise
        cancelled = True
    return Sweep(plan, tuple(made), torch.cat(thumbnails), cancelled)


class _Sampler:
    """Samples batches of a plan; keeps the prompts' encodings between them."""

    def __init__(self, source: Source, plan: SweepPlan):
        self.source, self.plan = source, plan
        self._encodings: dict[tuple[str, object], tuple[list, list]] = {}

    def images(self, batch: Sequence[PlannedImage]) -> Tensor:
        """Sample and decode a batch, in halves where memory does not hold it: (n, H, W, 3) in 0..1."""
        try:
            return self._sampled(batch)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        free_unused()
        half = len(batch) // 2
        return torch.cat([self.images(batch[:half]), self.images(batch[half:])])

    def _sampled(self, batch: Sequence[PlannedImage]) -> Tensor:
        source = self.source
        model = apply_sliders(source.model, self.plan.stack_of(batch))
        positive, negative = self._prompts(batch[0])
        seeds = [planned.seed for planned in batch]
        latents = sample_seeds(model, positive, negative, source.latent, seeds, source.settings)
        return images_of(source.vae, latents).float()

    def _prompts(self, planned: PlannedImage) -> tuple[list, list]:
        """Encode the prompt of an image, and the negative one, with the slider if it changes the text encoder."""
        key = planned.prompt, self.plan.encoding(planned)
        if key not in self._encodings:
            clip, texts = self.source.clip, (planned.prompt, self.source.negative)
            if key[1] is not None:
                clip = apply_to_clip(clip, self.plan.stack_of([planned]))
            encoded = encode_prompts(clip, texts)
            self._encodings[key] = encoded[texts[0]], encoded[texts[1]]
        return self._encodings[key]


def _thumbnails(images: Tensor) -> Tensor:
    """(n, H, W, 3) -> (n, h, w, 3) of 256 pixels at most on the longer side."""
    height, width = images.shape[1:3]
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return images
    small = F.interpolate(rearrange(images, "n h w c -> n c h w"), size, mode="bilinear", antialias=True)
    return rearrange(small, "n c h w -> n h w c")
