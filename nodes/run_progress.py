"""Progress of training, inversion and measuring in a running ComfyUI: the bar, words on the node, preview strips."""

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
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..comfy_host.identity import weights_hash
from ..comfy_host.preview_images import decoded_images, rough_images
from ..inversion.progress import InversionProgress
from ..training.early_stop import Embed
from ..training.progress import Progress
from ..training.recipe import Recipe
from ..training.run import RunOptions
from .image_strip import draw_strip
from .report import LATE_WARNING, PROGRESS, Report
from .resume_notes import checkpoint_folder

log = logging.getLogger(__name__)

IMAGE_WIDTH = 160  # pixels of one image in the preview strip
LARGEST_PREVIEW = 4 * IMAGE_WIDTH  # pixels of the longer side that the front end is sent
UNUSED_VISION = "CLIP vision is only used by the early stop: set patience, or do without it."
STRENGTHS = ("-1", "0", "+1")  # of the images in a training preview, and in each row of one of directions


def watch_training(
    model: ModelPatcher | None,
    recipe: Recipe,
    vae: VAE | None = None,
    checkpoint_every: int = 0,
    clip_vision: ClipVisionModel | None = None,
    node_id: str | None = None,
    warnings: tuple[str, ...] = (),
) -> RunOptions:
    """Make what a training run reports to: ComfyUI's progress bar, text and preview strips on the node, checkpoints.

    model: the one that is trained on; None shows no images.
    clip_vision: embeds the images that the early stop compares. Without an early stop it is not used, which is one
        of the run's warnings.
    node_id: the node that the text is shown on; None, outside a graph, shows none.
    warnings: what is known of the run already, see `RunOptions`.
    Raises ValueError if CLIP vision is used without a VAE.
    """
    embed, embed_hash = _image_embedding(clip_vision, model, recipe, vae)
    if clip_vision is not None and embed is None:
        warnings = (*warnings, UNUSED_VISION)
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
        warnings=warnings,
    )


def _image_embedding(
    clip_vision: ClipVisionModel | None, model: ModelPatcher | None, recipe: Recipe, vae: VAE | None
) -> tuple[Embed | None, str]:
    """Return what the early stop embeds predicted images with, and a hash of it; see `RunOptions`."""
    if clip_vision is None or not recipe.patience:
        return None, ""
    if vae is None:
        raise ValueError("Training: CLIP vision embeds images; connect a VAE to decode them.")
    if getattr(vae, "patcher", None) is None:  # ComfyUI's stand-in, where a checkpoint has none
        raise ValueError("Training: the VAE that is connected has no weights: its checkpoint has none; take another.")

    def embed(latents: Tensor) -> Tensor:
        return clip_vision.encode_image(decoded_images(model, latents, vae))["image_embeds"]

    return embed, weights_hash(clip_vision.patcher) + weights_hash(vae.patcher)


def say(text: str, node_id: str | None) -> None:
    """Show a text where the node's report will stand. Outside a graph, where node_id is None, nothing is shown."""
    _send(PROGRESS, text, node_id)


def warner(node_id: str | None) -> Callable[[str], None]:
    """Make what adds warnings to the report of a node that has ended, while others use what it has put out."""
    return lambda text: _send(LATE_WARNING, text, node_id)


def _send(message: str, text: str, node_id: str | None) -> None:
    if node_id is not None:
        server = PromptServer.instance
        prompt_id = getattr(server, "last_prompt_id", None)  # it comes with the first prompt
        told = {"node": node_id, "text": text, "prompt_id": prompt_id}
        server.send_sync(message, told, server.client_id)


class InversionWatch:
    """What an inversion reports to: ComfyUI's progress bar, words on the node, now and then the images it heads for.

    first: what the first call told; None before it. A run that was cancelled and goes on does not begin at its start.
    """

    def __init__(self, model: ModelPatcher, vae: VAE | None = None, node_id: str | None = None):
        self.first: InversionProgress | None = None
        self._model, self._vae, self._node_id = model, vae, node_id
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, so_far: InversionProgress) -> None:
        self.first = self.first or so_far
        preview = None
        if so_far.preview is not None:
            strip = _strip(self._model, so_far.preview, self._vae, so_far.text, [""] * len(so_far.preview))
            preview = ("JPEG", strip, LARGEST_PREVIEW)
        say(so_far.text, self._node_id)
        self._bar.update_absolute(so_far.done, so_far.of, preview)


def watch_images(node_id: str | None) -> Callable[[int, int], None]:
    """Make what a run that samples images reports to: ComfyUI's progress bar, and words on the node."""
    return watch_counts("image", node_id)


def watch_counts(what: str, node_id: str | None) -> Callable[[int, int], None]:
    """Make what a run that counts reports to, as `watch_images`. what: it counts, such as "image"."""
    bar, first = comfy.utils.ProgressBar(1), None

    def tell(done: int, of: int) -> None:
        nonlocal first
        first, now, left = first or (done, time.monotonic()), time.monotonic(), ""
        if done > first[0]:
            left = f", {duration((now - first[1]) / (done - first[0]) * (of - done))} left"
        say(f"{what} {done} of {of}{left}", node_id)
        bar.update_absolute(done, of)

    return tell


def duration(seconds: float) -> str:
    """Put a time into digits: "3:05", "1:02:00"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def told(progress: Progress, steps: int, is_kept: bool) -> Report:
    """Report how a training run went and ended; an error that ended it is logged too.

    is_kept: True if it has a checkpoint to go on from.
    """
    went_on = f"went on from step {progress.resumed_from}" if progress.resumed_from else ""
    report = Report().fact(went_on).warn(*progress.notes)
    if progress.failure:
        text = f"{progress.failure} The slider is as it was after step {progress.steps}."
        log.error(text)
        return report.warn(text)
    loss = f"loss {statistics.mean(progress.losses[-50:]):.4g}"
    if progress.stopped:
        again = "; the same training, queued again, goes on from there" if is_kept else ""
        return report.warn(f"stopped at step {progress.steps} of {steps}; {loss}{again}")
    early = "; it ended early, as its effect no longer grew" if progress.converged else ""
    return report.fact(f"{progress.steps} of {steps} steps; {loss}{early}")


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
        if progress.resumed_from:
            text = f"went on from step {progress.resumed_from}: {text}"
        if done <= 0:
            return text
        return f"{text}, {duration((now - began) / done * (self.steps - progress.steps))} left"

    def is_due(self) -> bool:
        """Returns True if a second has passed since it last did."""
        if self._now() < self._not_before:
            return False
        self._not_before = self._now() + 1.0
        return True


def _strip(
    model: ModelPatcher | None, latents: Tensor, vae: VAE | None, title: str, labels: Sequence[str]
) -> Image.Image:
    """Clean latents (N, C, ...) as images in rows, one column for each label."""
    images = decoded_images(model, latents, vae) if vae is not None else rough_images(model, latents)
    sheet = draw_strip(images[: len(latents)].cpu(), list(labels), title, IMAGE_WIDTH)
    return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy())
