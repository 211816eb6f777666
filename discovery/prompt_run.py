"""Discovery of directions in a prompt's encoding, from a model and a prompt to shifts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.borrow import ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from .prompt_directions import PromptDirections, PromptSearch
from .trajectories import Sampling, Trajectories, sampled

AT_ONCE = 16  # samples in one batch


@dataclass(frozen=True)
class PromptRecipe:
    """How directions of a prompt are looked for.

    directions: how many; 0 proposes a number from the variance. samples: images whose differences are looked at, at
    least 4. gradients: how many differences are sent back to the prompt, more than the directions.
    sampling_steps, guidance, scheduler: of the samples; guidance 1 for few-step models.
    spread: how far strength 1 moves images, in standard deviations of what the model varies by itself.
    Raises ValueError naming the setting, what was given and what is allowed.
    """

    prompt: str
    directions: int = 8
    samples: int = 64
    gradients: int = 256
    sampling_steps: int = 20
    guidance: float = 3.0
    scheduler: str = "simple"
    seed: int = 0
    spread: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "prompt": (bool(self.prompt.strip()), "a text"),
            "directions": (0 <= self.directions <= 256, "1 to 256, or 0 for a number from the variance"),
            "samples": (self.samples >= 4, "at least 4"),
            "gradients": (
                self.gradients > max(1, self.directions),
                f"more than the directions, {max(1, self.directions)}",
            ),
            "sampling_steps": (self.sampling_steps >= 1, "at least 1"),
            "guidance": (isfinite(self.guidance) and self.guidance >= 0, "0 or above"),
            "spread": (isfinite(self.spread) and self.spread > 0, "a number above 0"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                got = getattr(self, name)
                raise ValueError(f"Discover Prompt Directions: {name} must be {allowed}, got {got!r}.")


def discover_in_prompt(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list[Any]],
    recipe: PromptRecipe,
    shape: tuple[int, ...],
    sampling: Callable[[int, int], None] = lambda done, total: None,
    searching: Callable[[int, int], None] = lambda done, total: None,
) -> PromptDirections:
    """Find directions of a prompt on the model in place.

    conditionings: ComfyUI's CONDITIONING for the prompt and the empty one. shape: (C, ...) of a latent.
    sampling, searching: told how many samples, and how many gradients, there are by now, and how many there will be.
    Raises ValueError for samples that do not differ, and a model that does not read the encoding; the model is given
    back as it was in every case.
    """
    memory = patcher.model.memory_required([AT_ONCE, *shape])
    with borrowed(patcher, memory_required=int(memory)):
        own = {prompt: for_autograd(conditioning) for prompt, conditioning in conditionings.items()}
        denoiser = Denoiser(patcher, own)
        samples = _samples(denoiser, recipe, shape, sampling)
        generator = torch.Generator().manual_seed(recipe.seed)
        search = PromptSearch(denoiser, own[recipe.prompt], samples)
        return search.directions(recipe.directions, recipe.gradients, recipe.spread, generator, searching)


def _samples(
    denoiser: Denoiser, recipe: PromptRecipe, shape: tuple[int, ...], report: Callable[[int, int], None]
) -> Trajectories:
    how = Sampling(recipe.sampling_steps, recipe.guidance, recipe.scheduler, recipe.seed)
    parts = []
    for first in range(0, recipe.samples, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, recipe.samples))
        with torch.no_grad():
            parts.append(sampled(denoiser, _not_embedded, recipe.prompt, shape, numbers, how))
        report(numbers.stop, recipe.samples)
    return Trajectories.joined(parts)


def _not_embedded(clean: Tensor) -> Tensor:
    """Stand in for an embedding: directions of a prompt are of latents alone."""
    return torch.zeros(len(clean), 1)
