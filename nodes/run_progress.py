"""Progress of training and of inversion in a running ComfyUI: the bar, words on the node, preview strips."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence

import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..comfy_host.identity import weights_hash
from ..comfy_host.preview_images import decoded_images, rough_images
from ..inversion.inversion_run import InversionProgress, ReportProgress
from ..training.early_stop import Embed
from ..training.loop import Progress
from ..training.recipe import Recipe
from ..training.run import RunOptions
from .image_strip import draw_strip
from .resume_notes import checkpoint_folder

log = logging.getLogger(__name__)

IMAGE_WIDTH = 160  # pixels of one image in the preview strip
LARGEST_PREVIEW = 4 * IMAGE_WIDTH  # pixels of the longer side that the front end is sent
STRENGTHS = ("-1", "0", "+1")  # of the images in a training preview


def watch_training(
    model: ModelPatcher | None,
    recipe: Recipe,
    vae: VAE | None = None,
    checkpoint_every: int = 0,
    clip_vision: ClipVisionModel | None = None,
    node_id: str | None = None,
) -> RunOptions:
    """Make what a training run reports to: ComfyUI's progress bar, text and preview strips on the node, checkpoints.

    model: the one that is trained on; None shows no images.
    clip_vision: embeds the images that the early stop compares. Without an early stop it is not used, and the log
        says so.
    node_id: the node that the text is shown on; None, outside a graph, shows none.
    Raises ValueError if CLIP vision is used without a VAE.
    """
    embed, embed_hash = _image_embedding(clip_vision, model, recipe, vae)
    steps = recipe.steps
    bar, clock = comfy.utils.ProgressBar(steps), Clock(steps)

    def progress(done: Progress, latents: Tensor | None) -> None:
        text, preview = clock.said(done), None
        if clock.is_due():
            say(text, node_id)
        if latents is not None:
            preview = ("JPEG", _strip(model, latents, vae, text, STRENGTHS), LARGEST_PREVIEW)
        bar.update_absolute(done.steps, steps, preview)

    return RunOptions(
        progress=progress,
        checkpoints=checkpoint_folder() if checkpoint_every else None,
        checkpoint_every=checkpoint_every,
        embed=embed,
        embed_hash=embed_hash,
    )


def _image_embedding(
    clip_vision: ClipVisionModel | None, model: ModelPatcher | None, recipe: Recipe, vae: VAE | None
) -> tuple[Embed | None, str]:
    """Return what the early stop embeds predicted images with, and a hash of it; see `RunOptions`."""
    if clip_vision is None:
        return None, ""
    if not recipe.patience:
        log.warning("Training: CLIP vision is only used by the early stop: set patience, or do without it.")
        return None, ""
    if vae is None:
        raise ValueError("Training: CLIP vision embeds images; connect a VAE to decode them.")
    if getattr(vae, "patcher", None) is None:  # ComfyUI's stand-in, where a checkpoint has none
        raise ValueError("Training: the VAE that is connected has no weights: its checkpoint has none; take another.")

    def embed(latents: Tensor) -> Tensor:
        return clip_vision.encode_image(decoded_images(model, latents, vae))["image_embeds"]

    return embed, weights_hash(clip_vision.patcher) + weights_hash(vae.patcher)


def say(text: str, node_id: str | None) -> None:
    """Show a text on a node at once. Outside a graph, where node_id is None, nothing is shown."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


def watch_inversion(model: ModelPatcher, vae: VAE | None = None) -> ReportProgress:
    """Make what an inversion reports to: ComfyUI's progress bar, and now and then the images it is heading for."""
    bar = comfy.utils.ProgressBar(1)

    def tell(so_far: InversionProgress) -> None:
        preview = None
        if so_far.preview is not None:
            strip = _strip(model, so_far.preview, vae, so_far.text, [""] * len(so_far.preview))
            preview = ("JPEG", strip, LARGEST_PREVIEW)
        bar.update_absolute(so_far.done, so_far.of, preview)

    return tell


def told(progress: Progress, steps: int, node_id: str | None) -> ui.PreviewText:
    """Say how a training run ended, for its node to show. An error that ended it is logged and shown at once too."""
    lasting = statistics.mean(progress.losses[-50:])
    text = progress.failure or f"{progress.steps} of {steps} steps; loss {lasting:.4g}"
    if progress.converged:
        text += "; it ended early, as its effect no longer grew"
    if progress.failure:
        text += f" The slider is as it was after step {progress.steps}."
        log.error(text)
        say(text, node_id)
    return ui.PreviewText(text)


class Clock:
    """Says how far a run is and how long it will still take, about once a second.

    steps: of the whole run. now: returns the time in seconds, from any start.
    """

    def __init__(self, steps: int, now: Callable[[], float] = time.monotonic):
        self.steps, self._now = steps, now
        self._first: tuple[int, float] | None = None
        self._not_before = now()

    def said(self, progress: Progress) -> str:
        """Say the step, the loss, and, from the second call on, the time left. To be called after every step."""
        now = self._now()
        if self._first is None:  # a run that resumes from a checkpoint begins at its step
            self._first = (progress.steps, now)
        done, began = progress.steps - self._first[0], self._first[1]
        text = f"step {progress.steps} of {self.steps}, loss {statistics.mean(progress.losses[-20:]):.3g}"
        if done <= 0:
            return text
        minutes, seconds = divmod(round((now - began) / done * (self.steps - progress.steps)), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"{text}, {left} left"

    def is_due(self) -> bool:
        """Returns True if a second has passed since it last did."""
        if self._now() < self._not_before:
            return False
        self._not_before = self._now() + 1.0
        return True


def _strip(
    model: ModelPatcher | None, latents: Tensor, vae: VAE | None, title: str, labels: Sequence[str]
) -> Image.Image:
    """Clean latents (N, C, ...) as images side by side, one for each label."""
    images = decoded_images(model, latents, vae) if vae is not None else rough_images(model, latents)
    sheet = draw_strip(images[: len(labels)].cpu(), list(labels), title, IMAGE_WIDTH)
    return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy())
