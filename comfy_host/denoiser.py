"""The host's model as one function: d(x, sigma, prompts), every family in its own linear form."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import merge_nested_dicts
from torch import Tensor, nn

from .attention import OVERRIDE, LearningAttention
from .batch_entries import must_be_apart, takes_one_row
from .errors import ran_out
from .latents import Shapes
from .prompt_cache import PromptCache
from .torch_compile import eagerly

Conditions = dict[str, CONDRegular]  # by the name of the argument of the model that it is


class ActingLayers(Protocol):
    """What a slider is while it learns: layers that can be let act."""

    def acting(self, strengths: Tensor) -> AbstractContextManager[None]: ...


class Denoiser:
    """d(x, sigma, prompts) = (x - denoised) / sigma: eps for eps- and v-models, velocity for flow models.

    patcher: the model, in use (see `borrow.borrowed`). conditionings: the host's CONDITIONING by prompt.
    shapes: of the parts that latents are packed of, see `latents.packed`.
    """

    def __init__(self, patcher: ModelPatcher, conditionings: Mapping[str, list], shapes: Shapes = None):
        self.patcher, self.shapes = patcher, shapes
        self.sampling = patcher.model.model_sampling
        self.device = patcher.load_device
        self._attention = LearningAttention(patcher.model_options.get("transformer_options", {}))
        self._conditionings = conditionings
        self._conditions: dict[tuple, Conditions] = {}  # what the model makes of them, by prompt and latent size
        self.dtype = patcher.model.get_dtype_inference()  # of the activations
        # Most entries of a batch: that the model takes, or that memory has had room for, if it ran out
        self.at_once: int | None = 1 if takes_one_row(patcher.model) else None

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """One prediction per prompt and latent, in one batch: x (B, C, ...) -> (len(prompts), B, C, ...).

        sigma: a scalar tensor. Without any part thrown away: guidance is the caller's choice of prompts, which must
        go into one batch, see `ask`.
        """
        return self.evaluate(x, sigma, [self._conditions_of(prompt, x) for prompt in prompts])

    def evaluate(self, x: Tensor, sigma: Tensor, prompts: Sequence[Conditions]) -> Tensor:
        """The same for prompts given as what `conditions` makes of them: x (B, C, ...) -> (len(prompts), B, C, ...).

        Gradients reach the tensors of a prompt that require them.
        """
        batch = x.repeat(len(prompts), *(1 for _ in x.shape[1:]))  # (P * B, C, ...), chunk by chunk
        sigmas = sigma.to(batch).expand(len(batch))
        conditions = comfy.samplers.cond_cat([_for_batch(prompt, len(x)) for prompt in prompts])
        given = self.patcher.model_options.get("transformer_options", {})
        options = {
            **given,
            OVERRIDE: self._attention,
            "wrappers": merge_nested_dicts(given.get("wrappers", {}), self.patcher.wrappers),
            "callbacks": merge_nested_dicts(given.get("callbacks", {}), self.patcher.callbacks),
            "cond_or_uncond": [0] * len(prompts),
            "sigmas": sigmas[: len(x)],
        }
        with PromptCache().instead(self.patcher.model, None), eagerly(options):
            denoised = self.patcher.model.apply_model(batch, sigmas, **conditions, transformer_options=options)
        d = (batch - denoised) / sigma
        return d.unflatten(0, (len(prompts), len(x)))

    @torch.no_grad()
    def ask(
        self,
        x: Tensor,
        sigma: Tensor,
        prompts: Sequence[str],
        layers: ActingLayers | None = None,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """The same without gradients, with a slider at strengths (len(prompts), B, 1), or the frozen model.

        In as few batches as memory and the model allow: prompts of different lengths have one each, unless the model
        reads them padded. Raises the host's out-of-memory error if a single entry does not fit.
        """
        answers = {}
        for group in self._alike(x, prompts):
            taken = None if strengths is None else strengths[group]
            answers |= zip(group, self._ask_alike(x, sigma, [prompts[place] for place in group], layers, taken))
        return torch.stack([answers[place] for place in range(len(prompts))])

    def _ask_alike(
        self, x: Tensor, sigma: Tensor, prompts: Sequence[str], layers: ActingLayers | None, strengths: Tensor | None
    ) -> Tensor:
        """The same of prompts that go into one batch."""
        entries, acting = len(prompts) * len(x), nullcontext()
        too_many = self.at_once is not None and entries > self.at_once
        if layers is not None and strengths is not None and strengths.any():
            by_entry = strengths.flatten(0, 1)
            acting, too_many = layers.acting(by_entry), too_many or must_be_apart(self.patcher.model, by_entry)
        if too_many:
            return self._halves(x, sigma, prompts, layers, strengths)
        try:
            with acting:
                return self(x, sigma, prompts)
        except RuntimeError as error:
            if entries == 1 or not ran_out(error):
                raise
            self.at_once = entries // 2
        comfy.model_management.soft_empty_cache()
        logging.warning("There is no memory for %d predictions at once; going on with %d.", entries, self.at_once)
        return self._halves(x, sigma, prompts, layers, strengths)

    def _alike(self, x: Tensor, prompts: Sequence[str]) -> list[list[int]]:
        """The places of prompts that the host would put into one batch, batch by batch."""
        if len(prompts) == 1:
            return [[0]]
        groups: list[tuple[dict, list[int]]] = []
        for place, prompt in enumerate(prompts):
            conditions = _for_batch(self._conditions_of(prompt, x), len(x))
            for first, places in groups:
                if comfy.samplers.cond_equal_size(first, conditions):
                    places.append(place)
                    break
            else:
                groups.append((conditions, [place]))
        return [places for _, places in groups]

    def _halves(self, x: Tensor, sigma: Tensor, prompts: Sequence[str], layers, strengths: Tensor | None) -> Tensor:
        """Asked in two parts: of the prompts, or of the rows where there is one prompt."""
        if len(prompts) > 1:
            middle, dim = len(prompts) // 2, 0
            parts = [(x, prompts[:middle], slice(None, middle)), (x, prompts[middle:], slice(middle, None))]
        else:
            middle, dim = len(x) // 2, 1
            parts = [(x[rows], prompts, (slice(None), rows)) for rows in (slice(None, middle), slice(middle, None))]
        answers = (
            self._ask_alike(some, sigma, of, layers, None if strengths is None else strengths[taken])
            for some, of, taken in parts
        )
        return torch.cat(list(answers), dim=dim)

    @property
    def network(self) -> nn.Module:
        """The part of the model that is made of blocks."""
        return self.patcher.model.diffusion_model

    def sigmas(self, steps: int, scheduler: str = "simple") -> Tensor:
        """(steps + 1,) falling noise levels of one of the host's schedules, ending at 0."""
        return comfy.samplers.calculate_sigmas(self.sampling, scheduler, steps).to(self.device)

    def scale_noise(self, sigma: Tensor, noise: Tensor, latents: Tensor | None = None) -> Tensor:
        """The latent at a noise level: of these clean latents, or at the first level of sampling from nothing."""
        clean = torch.zeros_like(noise) if latents is None else latents
        return self.sampling.noise_scaling(sigma, noise, clean, latents is None)

    def conditions(self, conditioning: list, x: Tensor) -> Conditions:
        """What the model is given for a prompt, a CONDITIONING of one entry, beside latents like x, (B, C, ...).

        For some models it depends on the size of the latents. Raises ValueError for several entries.
        """
        like = torch.zeros_like(x[:1])
        (entry, *more) = comfy.samplers.encode_model_conds(
            self.patcher.model.extra_conds,
            comfy.sampler_helpers.convert_cond(conditioning),
            like,
            self.device,
            "positive",
            latent_image=like,
            latent_shapes=self.shapes or [like.shape],  # models of video with sound do not run without
        )
        if more:
            raise ValueError("A prompt must be a single conditioning here, not several combined.")
        return entry["model_conds"]

    def _conditions_of(self, prompt: str, x: Tensor) -> Conditions:
        """Those of one of the denoiser's own prompts, made once for every size of latents."""
        key = (prompt, x.shape[1:])
        if key not in self._conditions:
            with torch.no_grad():
                self._conditions[key] = self.conditions(self._conditionings[prompt], x)
        return self._conditions[key]


def _for_batch(conditions: Conditions, batch_size: int) -> dict[str, Any]:
    """The same repeated for every entry of a batch, as ComfyUI's sampling does."""
    return {name: each.process_cond(batch_size=batch_size, area=None) for name, each in conditions.items()}
