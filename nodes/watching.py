"""What training and inversion need of the running host: encoded prompts, and progress with pictures."""

import logging
import statistics
import time
from collections.abc import Callable, Iterable

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..comfy_host.identity import weights_hash
from ..inversion.inversion_run import InversionProgress, ReportProgress
from ..training.early_stop import Embed
from ..training.loop import Progress
from ..training.recipe import Recipe
from ..training.run import Watch
from .stopped import checkpoint_folder
from .strip import draw_strip

CELL = 160  # pixels of one picture in the preview strip


def encode_prompts(clip, prompts: Iterable[str]) -> dict[str, list]:
    """The host's CONDITIONING for every prompt."""
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}


def fitted(model: ModelPatcher, latent: dict) -> Tensor:
    """(B, C, ...) latents with the channels and the size of this model, as KSampler fits them.

    The host's nested ones, of films with sound, are left as they are.
    """
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def watch_training(
    model: ModelPatcher | None,
    recipe: Recipe,
    vae=None,
    checkpoint_every: int = 0,
    clip_vision=None,
    node_id: str | None = None,
) -> Watch:
    """Progress on the host's bar and in words on the node, a preview strip now and then, and checkpoints.

    model: None shows no pictures. clip_vision: what the early stop looks at pictures with; a run without one does
    not use it, and says so. Raises ValueError if it is used without a VAE.
    """
    embed, embed_hash = _seen_through(clip_vision, model, recipe, vae)
    steps = recipe.steps
    bar, clock = comfy.utils.ProgressBar(steps), Clock(steps)

    def progress(done: Progress, latents: Tensor | None) -> None:
        text, preview = clock.said(done), None
        if clock.is_due():
            say(text, node_id)
        if latents is not None:
            preview = ("JPEG", _strip(model, latents, vae, text), 4 * CELL)
        bar.update_absolute(done.steps, steps, preview)

    folder = checkpoint_folder() if checkpoint_every else None
    return Watch(
        progress=progress,
        checkpoints=folder,
        checkpoint_every=checkpoint_every,
        embed=embed,
        embed_hash=embed_hash,
    )


def _seen_through(clip_vision, model: ModelPatcher | None, recipe: Recipe, vae) -> tuple[Embed | None, str]:
    """What the early stop looks at foreseen images with, and what sets it apart; see `Watch`."""
    if clip_vision is None:
        return None, ""
    if not recipe.patience:
        logging.warning("Training: CLIP vision is only used by the early stop: set patience, or do without it.")
        return None, ""
    if vae is None:
        raise ValueError("Training: CLIP vision looks at pictures; wire in a VAE to make them.")
    if getattr(vae, "patcher", None) is None:  # the host's, where a checkpoint has none
        raise ValueError("Training: the VAE that is wired in has no weights: its checkpoint has none; take another.")

    def embed(latents: Tensor) -> Tensor:
        return clip_vision.encode_image(_decoded(model, latents, vae))["image_embeds"]

    return embed, weights_hash(clip_vision.patcher) + weights_hash(vae.patcher)


def say(text: str, node_id: str | None) -> None:
    """Show a text on the node at once; outside a graph there is none, and no server."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


def watch_inversion(model: ModelPatcher, vae=None) -> ReportProgress:
    """Progress of an inversion on the host's bar, now and then with the pictures it is heading for."""
    bar = comfy.utils.ProgressBar(1)

    def tell(so_far: InversionProgress) -> None:
        preview = None
        if so_far.preview is not None:
            latents = so_far.preview
            preview = ("JPEG", _strip(model, latents, vae, so_far.text, [""] * len(latents)), 4 * CELL)
        bar.update_absolute(so_far.done, so_far.of, preview)

    return tell


def told(progress: Progress, steps: int, node_id: str | None) -> ui.PreviewText:
    """What the node says when it is done; if training broke off, beside it at once, too."""
    lasting = statistics.mean(progress.losses[-50:])
    text = progress.broken or f"{progress.steps} of {steps} steps; loss {lasting:.4g}"
    if progress.looks >= 0.005:
        text += f"; previews and looks took {progress.looks:.0%} of the time"
    if progress.still:
        text += "; it reached no further"
    if progress.broken:
        text += f" The slider is as it was after step {progress.steps}."
        logging.error(text)
        say(text, node_id)
    return ui.PreviewText(text)


class Clock:
    """Says how far a run is and how long it will still take, about once a second.

    now: the time in seconds, from any start.
    """

    def __init__(self, steps: int, now: Callable[[], float] = time.monotonic):
        self.steps, self._now = steps, now
        self._first: tuple[int, float] | None = None
        self._not_before = now()

    def said(self, progress: Progress) -> str:
        """To be asked after every step; from the second one on it knows the time that is left."""
        now = self._now()
        if self._first is None:  # a run that goes on from a checkpoint begins at its step
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
        """Whether a second has passed since it last was."""
        if self._now() < self._not_before:
            return False
        self._not_before = self._now() + 1.0
        return True


def _strip(model: ModelPatcher, latents: Tensor, vae, title: str, labels=("-1", "0", "+1")) -> Image.Image:
    """A few clean latents as pictures side by side: at strength -1, 0 and +1."""
    images = _decoded(model, latents, vae) if vae is not None else _from_latents(model, latents)
    sheet = draw_strip(images[: len(labels)].cpu(), list(labels), title, CELL)
    return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy())


def _decoded(model: ModelPatcher, latents: Tensor, vae) -> Tensor:
    """(N, H, W, 3) pictures of N latents, or the frames in the middle of N films."""
    images = vae.decode(model.model.process_latent_out(latents.float()))
    return images[:, images.shape[1] // 2] if images.ndim == 5 else images  # (N, T, H, W, 3) -> (N, H, W, 3)


def _from_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """(N, h, w, 3) rough pictures by the host's linear map from latents to colours; grey where it has none.

    latents: (N, C, h, w), or (N, C, T, h, w) of films, of which the frame in the middle is taken.
    """
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return torch.full((len(latents), 8, 8, 3), 0.5)
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )
    if latents.ndim == 5:
        latents = latents[:, :, latents.shape[2] // 2, None]
    pictures = [previewer.decode_latent_to_preview(one[None]) for one in latents.float().cpu()]
    return torch.stack([_tensor(picture) for picture in pictures])


def _tensor(picture: Image.Image) -> Tensor:
    return (
        torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        .reshape(picture.height, picture.width, 3)
        .float()
        / 255
    )
