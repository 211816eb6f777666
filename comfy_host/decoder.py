"""A VAE's decoder as a function that gradients pass through."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from einops import rearrange
from torch import Tensor


class Decoder:
    """Clean latents in the model's own scale, (B, C, ...), to images (B, H, W, 3) in [0, 1].

    Of a video it gives the frame in the middle. The VAE must be in use, see `borrow.borrowed`.
    """

    def __init__(self, model: ModelPatcher, vae: VAE):
        self._from_model_scale, self.vae = model.model.process_latent_out, vae

    def __call__(self, latents: Tensor) -> Tensor:
        vae = self.vae
        samples = self._from_model_scale(latents.float())
        samples = samples[:, :, 0] if vae.latent_dim == 2 and samples.ndim == 5 else samples
        decoded = vae.first_stage_model.decode(samples.to(vae.device, vae.vae_dtype)).float()
        images = vae.process_output(decoded)
        images = images[:, :, images.shape[2] // 2] if images.ndim == 5 else images
        return rearrange(images, "b c h w -> b h w c")

    @property
    def patcher(self) -> ModelPatcher:
        return self.vae.patcher

    def memory_required(self, shape: tuple[int, ...]) -> int:
        """The bytes that ComfyUI reckons with for decoding latents of this shape, without gradients."""
        return int(self.vae.memory_used_decode(shape, self.vae.vae_dtype))
