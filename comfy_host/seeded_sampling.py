"""Sampling a batch whose entries have seeds of their own, so that each is what ComfyUI makes of its seed alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .latents import packed

SAMPLERS, SCHEDULERS = comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES
_LATER_NOISE = 1  # added to a seed for the noise within sampling, which must not be the initial noise again


@dataclass(frozen=True)
class SamplerSettings:
    """How images are sampled, as in KSampler.

    steps: in [1, 10000]. cfg: in [0, 100]. sampler, scheduler: by ComfyUI's names.
    Raises ValueError naming the setting, what was given and what is allowed.
    """

    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "simple"

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 10_000), ("cfg", 0, 100)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"Sampling: {name} must lie between {low} and {high}; got {getattr(self, name)!r}.")
        for name, allowed in (("sampler", SAMPLERS), ("scheduler", SCHEDULERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Sampling: {name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}."
                )


def sample_seeds(
    patcher: ModelPatcher,
    positive: list,
    negative: list,
    latent: Any,
    seeds: Sequence[int],
    settings: SamplerSettings,
) -> Any:
    """Sample one latent for each seed, in one batch.

    latent: one entry (1, C, ...) of the shape to sample at, or ComfyUI's nested tensor of several such parts.
    Returns latents (len(seeds), C, ...) in the scale of ComfyUI's LATENT. Entries of one seed have the same noise, at
    the start and, with samplers that add noise, in every step; left alone these would add other noise to each entry.
    """
    noise = _joined([comfy.sample.prepare_noise(latent, seed) for seed in seeds])
    schedule = comfy.samplers.KSampler(
        patcher, settings.steps, patcher.load_device, settings.sampler, settings.scheduler, model_options={}
    )
    sampler = _with_noise_by_seed(comfy.samplers.sampler_object(settings.sampler), packed(noise)[0].shape[1:], seeds)
    return comfy.sample.sample_custom(
        *(patcher, noise, settings.cfg, sampler, schedule.sigmas, positive, negative, _joined([latent] * len(seeds))),
        disable_pbar=True,
        seed=seeds[0],
    )


def first_entry(latent: Any) -> Any:
    """Return the first entry of latents, (1, C, ...), of nested ones that of every part."""
    if not latent.is_nested:
        return latent[:1]
    return comfy.nested_tensor.NestedTensor([part[:1] for part in latent.unbind()])


def _with_noise_by_seed(sampler: Any, shape: Sequence[int], seeds: Sequence[int]) -> Any:
    """Return the sampler with noise of each entry's own seed, if it adds any. shape: of one entry, (C, ...)."""
    if "noise_sampler" not in inspect.signature(sampler.sampler_function).parameters:
        return sampler
    options = {**sampler.extra_options, "noise_sampler": _noise_by_seed(shape, seeds)}
    return comfy.samplers.KSAMPLER(sampler.sampler_function, options, sampler.inpaint_options)


def _noise_by_seed(shape: Sequence[int], seeds: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    generators = {seed: torch.Generator().manual_seed((seed + _LATER_NOISE) % 2**64) for seed in seeds}

    def noise(sigma: Tensor, next_sigma: Tensor) -> Tensor:
        drawn = {seed: torch.randn(*shape, generator=generator) for seed, generator in generators.items()}
        return torch.stack([drawn[seed] for seed in seeds]).to(torch.as_tensor(sigma).device)

    return noise


def _joined(latents: Sequence[Any]) -> Any:
    """Join latents to one batch, nested ones part by part."""
    if not latents[0].is_nested:
        return torch.cat(list(latents))
    parts = zip(*(each.unbind() for each in latents))
    return comfy.nested_tensor.NestedTensor([torch.cat(part) for part in parts])
