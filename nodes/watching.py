"""What training and inversion need of the running host: encoded prompts, and progress with pictures."""

import logging
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..inversion.run import Tell, Told
from ..training.loop import Progress
from ..training.preview import SHARE
from ..training.run import Watch
from .strip import draw_strip

CELL = 160  # pixels of one picture in the preview strip


def encode_prompts(clip, prompts: Iterable[str]) -> dict[str, list]:
    """The host's CONDITIONING for every prompt."""
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}


def fitted(model: ModelPatcher, latent: dict) -> Tensor:
    """(B, C, ...) latents with the channels and the size of this model, as KSampler fits them."""
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def watch_training(model: ModelPatcher, steps: int, vae=None, checkpoint_every: int = 0, clip_vision=None) -> Watch:
    """Progress on the host's bar, a preview strip now and then, and checkpoints in the output folder.

    clip_vision: what the early stop looks at pictures with. Raises ValueError if it is there without a VAE.
    """
    if clip_vision is not None and vae is None:
        raise ValueError("Training: CLIP vision looks at pictures; wire in a VAE to make them.")
    bar, clock = comfy.utils.ProgressBar(steps), _Clock(steps)

    def progress(done: Progress, latents: Tensor | None) -> None:
        preview = None
        if latents is not None:
            preview = ("JPEG", _strip(model, latents, vae, clock.said(done)), 4 * CELL)
        bar.update_absolute(done.steps, steps, preview)

    folder = Path(folder_paths.get_output_directory()) / "slider_checkpoints" if checkpoint_every else None
    embed = None
    if clip_vision is not None:

        def embed(latents: Tensor) -> Tensor:
            return clip_vision.encode_image(_decoded(model, latents, vae))["image_embeds"]

    return Watch(progress=progress, checkpoints=folder, checkpoint_every=checkpoint_every, embed=embed)


def watch_inversion(model: ModelPatcher, vae=None) -> Tell:
    """Progress of an inversion on the host's bar, now and then with the pictures it is heading for."""
    bar, not_before = comfy.utils.ProgressBar(1), 0.0

    def tell(so_far: Told) -> None:
        nonlocal not_before
        preview, began = None, time.monotonic()
        if so_far.preview is not None and began >= not_before:
            latents = so_far.preview[:3]
            preview = ("JPEG", _strip(model, latents, vae, so_far.text, [""] * len(latents)), 4 * CELL)
            not_before = time.monotonic() + (time.monotonic() - began) / SHARE
        bar.update_absolute(so_far.done, so_far.of, preview)

    return tell


def told(progress: Progress, steps: int, node_id: str | None) -> ui.PreviewText:
    """What the node says when it is done; if training broke off, beside it at once, too."""
    lasting = statistics.mean(progress.losses[-50:])
    text = progress.broken or f"{progress.steps} of {steps} steps; loss {lasting:.4g}"
    if progress.still:
        text += "; it reached no further"
    if progress.broken:
        text += f" The slider is as it was after step {progress.steps}."
        logging.error(text)
        if PromptServer.instance is not None and node_id is not None:
            PromptServer.instance.send_progress_text(text, node_id)
    return ui.PreviewText(text)


class _Clock:
    """Says how far a run is and how long it will still take."""

    def __init__(self, steps: int):
        self.steps, self.first = steps, None

    def said(self, progress: Progress) -> str:
        now = time.monotonic()
        if self.first is None:  # a run that goes on from a checkpoint begins at its step
            self.first = (progress.steps, now)
        done, began = progress.steps - self.first[0], self.first[1]
        text = f"step {progress.steps} of {self.steps}, loss {statistics.mean(progress.losses[-20:]):.3g}"
        if done <= 0:
            return text
        left = round((now - began) / done * (self.steps - progress.steps))
        return f"{text}, {left // 60}:{left % 60:02d} left"


def _strip(model: ModelPatcher, latents: Tensor, vae, title: str, labels=("-1", "0", "+1")) -> Image.Image:
    """A few clean latents as pictures side by side: at strength -1, 0 and +1."""
    images = _decoded(model, latents, vae) if vae is not None else _from_latents(model, latents)
    sheet = draw_strip(images[: len(labels)].cpu(), list(labels), title, CELL)
    return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy())


def _decoded(model: ModelPatcher, latents: Tensor, vae) -> Tensor:
    """(N, H, W, 3) pictures, or the frames of films one after the other."""
    images = vae.decode(model.model.process_latent_out(latents.float()))
    return images.reshape(-1, *images.shape[-3:])


def _from_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """(N, h, w, 3) rough pictures by the host's linear map from latents to colours; grey where it has none."""
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return torch.full((len(latents), 8, 8, 3), 0.5)
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )
    pictures = [previewer.decode_latent_to_preview(one[None]) for one in latents.float().cpu()]
    return torch.stack([_tensor(picture) for picture in pictures])


def _tensor(picture: Image.Image) -> Tensor:
    return (
        torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        .reshape(picture.height, picture.width, 3)
        .float()
        / 255
    )
