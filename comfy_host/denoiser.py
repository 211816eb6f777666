"""A diffusion model of ComfyUI as one function d(x, sigma, prompts), every family in the same linear form."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import merge_nested_dicts
from einops import rearrange
from torch import Tensor, nn

from .attention import OVERRIDE, LearningAttention
from .batch_entries import needs_separate_evaluations, takes_batches_of_one
from .errors import is_out_of_memory
from .latents import Shapes
from .model_caches import PromptCache, uncompiled
from .predictor import ActingLayers, DiffusionPredictor

log = logging.getLogger(__name__)

Conditions = dict[str, Any]  # ComfyUI's `model_conds`: what a model is given beside the latents, one batch entry
Conditioning = list  # ComfyUI's CONDITIONING: [[Tensor (B, tokens, width), {...}], ...]


class Denoiser(DiffusionPredictor):
    """d(x, sigma, prompts) = (x - denoised) / sigma: eps for eps- and v-models, velocity for flow models.

    patcher: the model, in use (see `borrow.borrowed`). conditionings: the CONDITIONING of each prompt.
    shapes: of the parts that latents are packed of, see `latents.packed`.
    """

    def __init__(self, patcher: ModelPatcher, conditionings: Mapping[str, Conditioning], shapes: Shapes = None):
        self.patcher, self.shapes = patcher, shapes
        self.sampling = patcher.model.model_sampling
        self.device = patcher.load_device
        self.dtype = patcher.model.get_dtype_inference()
        self.at_once: int | None = 1 if takes_batches_of_one(patcher.model) else None
        self._attention = LearningAttention(patcher.model_options.get("transformer_options", {}))
        self._conditionings = conditionings
        self._conditions: dict[tuple[str, torch.Size], Conditions] = {}  # by prompt and size of the latents

    @property
    def model(self) -> nn.Module:
        return self.patcher.model

    @property
    def problem(self) -> str:
        """Say what a node has put into the model and is not used here, for the user; "" if nothing."""
        return self._attention.problem

    @property
    def network(self) -> nn.Module:
        return self.patcher.model.diffusion_model

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Predict at every prompt and latent in one batch: x (B, C, ...) -> (len(prompts), B, C, ...).

        sigma: a scalar. The prompts must go into one batch, see `predict`; there is no guidance between them.
        """
        return self.evaluate(x, sigma, [self._conditions_of(prompt, x) for prompt in prompts])

    def evaluate(self, x: Tensor, sigma: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        """Predict under `conditions`, one batch: x (B, C, ...), sigma a scalar -> (len(conditions), B, C, ...)."""
        batch = x.repeat(len(conditions), *(1 for _ in x.shape[1:]))  # (P * B, C, ...), a copy also of one
        sigmas = sigma.to(batch).expand(len(batch))
        given = self.patcher.model_options.get("transformer_options", {})
        options = {
            **given,
            OVERRIDE: self._attention,
            "wrappers": merge_nested_dicts(given.get("wrappers", {}), self.patcher.wrappers),
            "callbacks": merge_nested_dicts(given.get("callbacks", {}), self.patcher.callbacks),
            "cond_or_uncond": [0] * len(conditions),
            "sigmas": sigmas[: len(x)],
        }
        own = comfy.samplers.cond_cat([_for_batch(each, len(x)) for each in conditions])
        with PromptCache().in_use(self.patcher.model, None), uncompiled(options):
            denoised = self.patcher.model.apply_model(batch, sigmas, **own, transformer_options=options)
        return rearrange((batch - denoised) / sigma, "(p b) ... -> p b ...", p=len(conditions))

    def conditions(self, conditioning: Conditioning, x: Tensor) -> Conditions:
        """Return what the model is given for one CONDITIONING beside latents x (B, C, ...).

        Gradients reach the tensors in it that require them. Raises ValueError for several combined conditionings.
        """
        latents = torch.zeros_like(x[:1])
        with nullcontext() if _requires_grad(conditioning) else torch.no_grad():
            (entry, *more) = comfy.samplers.encode_model_conds(
                self.patcher.model.extra_conds,
                comfy.sampler_helpers.convert_cond(conditioning),
                latents,
                self.device,
                "positive",
                latent_image=latents,
                latent_shapes=self.shapes or [latents.shape],  # models of video with sound do not run without
            )
        if more:
            raise ValueError("A prompt must be a single conditioning here, not several combined.")
        return entry["model_conds"]

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        prompts: Sequence[str],
        layers: ActingLayers | None = None,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """Predict without gradients, with a slider at strengths (len(prompts), B, 1), or with the frozen model.

        In as few batches as memory and the model allow: prompts of different lengths have one each, unless the model
        reads them padded. Raises ComfyUI's out-of-memory error if a single entry does not fit.
        """
        answers: dict[int, Tensor] = {}
        for group in self._alike(x, prompts):
            own = None if strengths is None else strengths[group]
            answers |= zip(group, self._predict_alike(x, sigma, [prompts[at] for at in group], layers, own))
        return torch.stack([answers[at] for at in range(len(prompts))])

    def sigmas(self, steps: int, scheduler: str = "simple") -> Tensor:
        """Return the (steps + 1,) falling sigmas of one of ComfyUI's schedules, ending at 0."""
        return comfy.samplers.calculate_sigmas(self.sampling, scheduler, steps).to(self.device)

    def scale_noise(self, sigma: Tensor, noise: Tensor, latents: Tensor | None = None) -> Tensor:
        """Return latents with noise at a sigma: of these clean latents, or where sampling from nothing begins."""
        clean = torch.zeros_like(noise) if latents is None else latents
        return self.sampling.noise_scaling(sigma, noise, clean, latents is None)

    def input_scale(self, sigma: Tensor) -> Tensor:
        """Return c_in(sigma), a scalar: what ComfyUI multiplies latents by before the network reads them.

        1 / sqrt(1 + sigma^2) for eps- and v-models, 1 for flow models (arXiv 2206.00364, table 1).
        """
        return self.sampling.calculate_input(sigma, torch.ones_like(sigma))

    def _predict_alike(
        self, x: Tensor, sigma: Tensor, prompts: Sequence[str], layers: ActingLayers | None, strengths: Tensor | None
    ) -> Tensor:
        """`predict` for prompts that go into one batch."""
        entries = len(prompts) * len(x)
        acting: AbstractContextManager[None] = nullcontext()
        too_many = self.at_once is not None and entries > self.at_once
        if layers is not None and strengths is not None and strengths.any():
            by_entry = rearrange(strengths, "p b slider -> (p b) slider")
            acting, too_many = layers.acting(by_entry), too_many or needs_separate_evaluations(self.model, by_entry)
        if too_many:
            return self._predict_halves(x, sigma, prompts, layers, strengths)
        try:
            with acting:
                return self(x, sigma, prompts)
        except RuntimeError as error:
            if entries == 1 or not is_out_of_memory(error):
                raise
            self.at_once = entries // 2
        comfy.model_management.soft_empty_cache()
        log.warning("There is no memory for %d predictions at once; going on with %d.", entries, self.at_once)
        return self._predict_halves(x, sigma, prompts, layers, strengths)

    def _predict_halves(
        self, x: Tensor, sigma: Tensor, prompts: Sequence[str], layers: ActingLayers | None, strengths: Tensor | None
    ) -> Tensor:
        """`_predict_alike` in two parts: of the prompts, or of the latents where there is one prompt."""
        parts: list[tuple[Tensor, Sequence[str], Any]]
        if len(prompts) > 1:
            middle, dim = len(prompts) // 2, 0
            parts = [(x, prompts[:middle], slice(None, middle)), (x, prompts[middle:], slice(middle, None))]
        else:
            middle, dim = len(x) // 2, 1
            halves = (slice(None, middle), slice(middle, None))
            parts = [(x[half], prompts, (slice(None), half)) for half in halves]
        answers = [
            self._predict_alike(some, sigma, of, layers, None if strengths is None else strengths[taken])
            for some, of, taken in parts
        ]
        return torch.cat(answers, dim=dim)

    def _alike(self, x: Tensor, prompts: Sequence[str]) -> list[list[int]]:
        """Return the indices of the prompts that ComfyUI would put into one batch, batch by batch."""
        if len(prompts) == 1:
            return [[0]]
        groups: list[tuple[Conditions, list[int]]] = []
        for index, prompt in enumerate(prompts):
            conditions = self._conditions_of(prompt, x)
            for first, indices in groups:
                if comfy.samplers.cond_equal_size(_for_batch(first, len(x)), _for_batch(conditions, len(x))):
                    indices.append(index)
                    break
            else:
                groups.append((conditions, [index]))
        return [indices for _, indices in groups]

    def _conditions_of(self, prompt: str, x: Tensor) -> Conditions:
        """Return the conditions of a prompt, made once for each size of latents unless gradients go through them."""
        conditioning, key = self._conditionings[prompt], (prompt, x.shape[1:])
        if _requires_grad(conditioning):  # not cached: it would keep its autograd graph alive
            return self.conditions(conditioning, x)
        if key not in self._conditions:
            self._conditions[key] = self.conditions(conditioning, x)
        return self._conditions[key]


def _for_batch(conditions: Conditions, entries: int) -> Conditions:
    return {name: condition.process_cond(batch_size=entries, area=None) for name, condition in conditions.items()}


def _requires_grad(conditioning: Conditioning) -> bool:
    """Return True if any tensor of a CONDITIONING requires a gradient."""
    tensors = (value for context, options in conditioning for value in (context, *options.values()))
    return any(isinstance(value, Tensor) and value.requires_grad for value in tensors)
