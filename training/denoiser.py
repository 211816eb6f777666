"""The host's model as one function: d(x, sigma, prompts), every family in its own linear form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


class Denoiser:
    """d(x, sigma, prompts) = (x - denoised) / sigma: eps for eps- and v-models, velocity for flow models.

    patcher: the model, in use (see `in_place.borrowed`). conditionings: the host's CONDITIONING by prompt.
    latents: (B, C, ...), any latents of the size that will be asked about, in the model's own scale.
    """

    def __init__(self, patcher: ModelPatcher, conditionings: Mapping[str, list], latents: Tensor):
        self.patcher = patcher
        self.sampling = patcher.model.model_sampling
        self.device = patcher.load_device
        self._conditions = {
            prompt: self._encoded(conditioning, latents) for prompt, conditioning in conditionings.items()
        }

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """One prediction per prompt and latent, in one batch: x (B, C, ...) -> (len(prompts), B, C, ...).

        sigma: a scalar tensor. Without any part thrown away: guidance is the caller's choice of prompts.
        """
        rows = x.shape[0]
        batch = x.repeat(len(prompts), *(1 for _ in x.shape[1:]))  # (P * B, C, ...), chunk by chunk
        sigmas = sigma.to(batch).expand(len(batch))
        conditions = comfy.samplers.cond_cat([self._row_conditions(prompt, rows) for prompt in prompts])
        options = {
            **self.patcher.model_options.get("transformer_options", {}),
            "wrappers": self.patcher.wrappers,
            "callbacks": self.patcher.callbacks,
            "cond_or_uncond": [0] * len(prompts),
            "sigmas": sigmas[:rows],
        }
        denoised = self.patcher.model.apply_model(batch, sigmas, **conditions, transformer_options=options)
        d = (batch - denoised) / sigma
        return d.unflatten(0, (len(prompts), rows))

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) falling noise levels of the host's "simple" schedule, ending at 0."""
        return comfy.samplers.calculate_sigmas(self.sampling, "simple", steps).to(self.device)

    def scale_noise(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """The latent at the first noise level of sampling from nothing."""
        return self.sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), True)

    def _encoded(self, conditioning: list, latents: Tensor) -> dict:
        converted = comfy.sampler_helpers.convert_cond(conditioning)
        (entry, *more) = comfy.samplers.encode_model_conds(
            self.patcher.model.extra_conds, converted, latents, self.device, "positive", latent_image=latents
        )
        if more:
            raise ValueError("A prompt for training must be a single conditioning, not several combined.")
        return entry["model_conds"]

    def _row_conditions(self, prompt: str, rows: int) -> dict:
        return {
            name: condition.process_cond(batch_size=rows, area=None)
            for name, condition in self._conditions[prompt].items()
        }
