"""Samples that directions are found on: trajectories of a prompt, and what the model predicts along them.

Each step of a trajectory is kept with the clean image that the model predicts there at the prompt, as a latent and as
an embedding. Directions are the embeddings' principal components; the steps are what their sliders learn on, and the
embeddings are what a slider's change is measured from, so that no frozen prediction is ever made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from ..sliders.formats.atomic_write import write_safetensors
from ..training.rollout import roll_out

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor

Embed = Callable[[Tensor], Tensor]  # clean latents (B, C, ...) in the model's scale -> (B, D)


_OF_EACH = ("x", "clean", "embeddings")


@dataclass(frozen=True)
class Trajectories:
    """Of one prompt.

    x: (N, K, C, ...), the latents at each step. clean: (N, K, C, ...), what is predicted there at the prompt.
    sigmas: (K,), falling. embeddings: (N, K, D), of the predicted clean images.
    """

    prompt: str
    x: Tensor
    clean: Tensor
    sigmas: Tensor
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @staticmethod
    def joined(parts: list[Trajectories]) -> Trajectories:
        """Several of one prompt as one."""
        x, clean, embeddings = (torch.cat([getattr(part, name) for part in parts]) for name in _OF_EACH)
        return Trajectories(parts[0].prompt, x, clean, parts[0].sigmas, embeddings)

    def part(self, chosen: slice) -> Trajectories:
        """Some of them."""
        x, clean, embeddings = (getattr(self, name)[chosen] for name in _OF_EACH)
        return Trajectories(self.prompt, x, clean, self.sigmas, embeddings)


@dataclass(frozen=True)
class Sampling:
    """How trajectories are sampled.

    steps: of each. guidance: classifier-free guidance scale; 1 for few-step models, which have none. scheduler: one
    of ComfyUI's. seed: trajectory n has the noise n of this seed, however they are batched.
    """

    steps: int = 20
    guidance: float = 1.0
    scheduler: str = "simple"
    seed: int = 0


def sampled(
    denoiser: DiffusionPredictor,
    embed: Embed,
    prompt: str,
    shape: tuple[int, ...],
    numbers: range,
    sampling: Sampling,
) -> Trajectories:
    """Sample the trajectories of these numbers in one batch. shape: (C, ...) of a latent."""
    noise = torch.stack([noise_of(shape, sampling.seed, number) for number in numbers]).to(denoiser.device)
    predictions = _Predictions(denoiser, prompt, sampling.guidance)
    rolled = roll_out(predictions, noise, denoiser.sigmas(sampling.steps, sampling.scheduler), denoiser.scale_noise)
    embeddings = torch.stack([embed(clean).cpu() for clean in predictions.clean])
    along = (rolled.x.cpu(), torch.stack(predictions.clean).cpu(), embeddings)
    x, clean, embeddings = (rearrange(values, "k n ... -> n k ...") for values in along)
    return Trajectories(prompt, x, clean, rolled.sigmas.cpu(), embeddings)


def kept(
    folder: Path | None, make: Callable[[range], Trajectories], count: int, at_once: int
) -> Iterator[Trajectories]:
    """Trajectories 0 to `count`, `at_once` at a time: read where they are in `folder`, else made and stored there."""
    for first in range(0, count, at_once):
        numbers = range(first, min(first + at_once, count))
        path = folder and folder / f"{numbers.start:06d}-{numbers.stop:06d}.safetensors"
        if path and path.exists():
            yield read_trajectories(path)
        elif path:
            write_trajectories(path, make(numbers))
            yield read_trajectories(path)  # as rounded: a run that finds them there is the same to the bit
        else:
            yield make(numbers)


def write_trajectories(path: Path, trajectories: Trajectories) -> None:
    """Store as safetensors, whole or not at all; latents in half precision."""
    halves = {"x": trajectories.x.half(), "clean": trajectories.clean.half()}
    whole = {"sigmas": trajectories.sigmas, "embeddings": trajectories.embeddings}
    tensors = {name: tensor.contiguous() for name, tensor in (halves | whole).items()}
    write_safetensors(path, tensors, {"prompt": trajectories.prompt}, "samples")


def read_trajectories(path: Path) -> Trajectories:
    """Raises ValueError, naming the file, if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_tensor(name).float() for name in (*_OF_EACH, "sigmas")}
            return Trajectories(file.metadata()["prompt"], **parts)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"The samples in {path} cannot be read ({error}). Delete the file to sample anew."
        ) from error


class _Predictions:
    """The guided prediction along a trajectory, which keeps the clean latents that are predicted at the prompt."""

    def __init__(self, denoiser: DiffusionPredictor, prompt: str, guidance: float):
        self.denoiser, self.prompt, self.guidance = denoiser, prompt, guidance
        self.clean: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        d = self.denoiser.predict(x, sigma, prompts_of(self.prompt, self.guidance))
        self.clean.append(clean_latents(x, sigma, d[0]))
        return guided(d, self.guidance)


def clean_latents(x: Tensor, sigma: Tensor, d: Tensor) -> Tensor:
    """The predicted clean latents of the linear form d = (x - denoised) / sigma."""
    return x - sigma * d


def prompts_of(prompt: str, guidance: float) -> list[str]:
    """Return the prompts that a guided prediction takes."""
    return [prompt] if guidance == 1 else [prompt, ""]


def guided(d: Tensor, guidance: float) -> Tensor:
    """Return the guided prediction of those at `prompts_of`, (1 or 2, B, C, ...) -> (B, C, ...)."""
    return d[0] if len(d) == 1 else classifier_free(d[0], d[1], guidance)


def noise_of(shape: tuple[int, ...], seed: int, number: int) -> Tensor:
    """Return the noise (C, ...) that the trajectory of this number begins with."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randn(shape, generator=generator)
