"""Samples of the pocket model by ComfyUI's own nodes, each image by a prompt of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

import nodes

from ..world.drawing import SIZE


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; the defaults are what suits the pocket model."""

    steps: int = 20
    cfg: float = 3.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 1000  # the first batch's noise; the next batch takes the next seed
    batch: int = 32


FEW_STEPS = Sampling(steps=4, cfg=1.0, scheduler="sgm_uniform")  # of the few-step student


def sampled(pocket, prompts: Sequence[str], sampling: Sampling) -> Tensor:
    """(N, 128, 128, 3) in [0, 1], one for each prompt. pocket: (MODEL, CLIP, VAE)."""
    return decoded(pocket[2], sampled_latents(pocket, prompts, sampling))


def sampled_latents(pocket, prompts: Sequence[str], sampling: Sampling) -> Tensor:
    """(N, 8, 16, 16)."""
    model, clip, _ = pocket
    parts = []
    with torch.inference_mode():  # as ComfyUI runs its nodes
        for index, begin in enumerate(range(0, len(prompts), sampling.batch)):
            asked = prompts[begin : begin + sampling.batch]
            (latent,) = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(asked))
            (latent,) = nodes.common_ksampler(
                model,
                sampling.seed + index,
                sampling.steps,
                sampling.cfg,
                sampling.sampler,
                sampling.scheduler,
                conditioning(clip, asked),
                conditioning(clip, [""]),
                latent,
            )
            parts.append(latent["samples"])
    return torch.cat(parts)


def conditioning(clip, prompts: Sequence[str]):
    """CONDITIONING with a prompt for each batch entry."""
    encoded = [nodes.CLIPTextEncode().encode(clip, prompt)[0][0] for prompt in prompts]
    words = torch.cat([tokens for tokens, _ in encoded])
    pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
    return [[words, {"pooled_output": pooled}]]


def by_euler(model, latent: Tensor, noise: Tensor, sigmas: Tensor, positive, negative, cfg: float) -> Tensor:
    """(N, 8, 16, 16), sampled down these sigmas as SamplerCustom does. noise: zeros where `latent` has it."""
    euler = comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, cfg, euler, sigmas, positive, negative, latent, seed=0
        ).clone()


def decoded(vae, latents: Tensor, batch: int = 64) -> Tensor:
    """(N, 8, 16, 16) -> (N, 128, 128, 3) in [0, 1]."""
    with torch.inference_mode():
        return torch.cat([vae.decode(part) for part in latents.split(batch)])


def continued(pocket, prompts: Sequence[str], share: float, seeds: Sequence[int], sampling: Sampling) -> list[Tensor]:
    """Images of runs that share the first part of sampling and go on with noise of their own, a run a seed.

    share: how much of the steps is shared, in [0, 1]. Each is (N, 128, 128, 3) in [0, 1].
    """
    model, clip, vae = pocket
    shared = round(share * sampling.steps)
    (latent,) = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(prompts))
    with torch.inference_mode():
        asked, empty = conditioning(clip, prompts), conditioning(clip, [""])

        def run(noise: str, seed: int, sampler: str, latent, start: int, end: int, leftover: str):
            return nodes.KSamplerAdvanced().sample(
                model, noise, seed, sampling.steps, sampling.cfg, sampler, sampling.scheduler,
                asked, empty, latent, start, end, leftover,
            )[0]  # fmt: skip

        half = run("enable", sampling.seed, sampling.sampler, latent, 0, shared, "enable") if shared else latent
        ends = [
            run("disable" if shared else "enable", seed, "euler_ancestral", half, shared, sampling.steps, "disable")
            for seed in seeds
        ]
    return [decoded(vae, end["samples"]) for end in ends]
