"""What training needs of the running host: encoded prompts, and progress with pictures."""

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ..training.loop import Progress
from ..training.recipe import Recipe
from ..training.textual import Watch
from .strip import draw_strip

CELL = 160  # pixels of one picture in the preview strip


def encode_prompts(clip, recipe: Recipe) -> dict[str, list]:
    """The host's CONDITIONING for every prompt of a recipe, and for the empty one."""
    prompts = dict.fromkeys((*recipe.concept.prompts(), ""))
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}


def fitted(model: ModelPatcher, latent: dict) -> Tensor:
    """(B, C, ...) latents with the channels and the size of this model, as KSampler fits them."""
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def watch_training(model: ModelPatcher, steps: int, vae=None) -> Watch:
    """Progress on the host's bar, and a preview strip now and then."""
    bar = comfy.utils.ProgressBar(steps)

    def progress(done: Progress, latents: Tensor | None) -> None:
        preview = None if latents is None else ("JPEG", _strip(model, latents, vae), 4 * CELL)
        bar.update_absolute(done.steps, steps, preview)

    return Watch(progress=progress, preview_every=max(10, steps // 20))


def _strip(model: ModelPatcher, latents: Tensor, vae) -> Image.Image:
    """Three clean latents as pictures at strength -1, 0 and +1."""
    if vae is not None:
        images = vae.decode(model.model.process_latent_out(latents.float()))
    else:
        images = _from_latents(model, latents)
    sheet = draw_strip(images.reshape(-1, *images.shape[-3:])[:3].cpu(), ["-1", "0", "+1"], "", CELL)
    return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy())


def _from_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """(3, h, w, 3) rough pictures by the host's linear map from latents to colours; grey where it has none."""
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return torch.full((3, 8, 8, 3), 0.5)
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
