"""Training of directions on their samples, through the decoder or through a head that spares it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.borrow import Loan
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import is_out_of_memory
from ..comfy_host.identity import digest_of
from ..comfy_host.memory import free_unused
from ..training.loop import Training
from ..training.previews import Previews
from ..training.progress import Progress
from ..training.run import RunOptions, run_kept
from ..training.trainable_layers import TrainableLayers
from .components import Components
from .head import explained, fitted_head
from .lessons import DirectionLessons
from .previews import DirectionPreviews
from .recipe import DECODER, HEAD, DiscoveryRecipe
from .trajectories import Embed, Trajectories

NO_ROOM = (
    "Training: there is no memory for gradients through the VAE's decoder; directions were trained through a head "
    "instead, as with embedding: head."
)


@dataclass(frozen=True)
class Samples:
    """What directions were found on, and what they are measured on: trajectories of every prompt.

    phi: of clean latents, by way of their image.
    """

    seen: Sequence[Trajectories]
    held_out: Sequence[Trajectories]
    phi: Embed


@dataclass(frozen=True)
class Learned:
    """Sliders as they were trained, not scaled yet.

    recipe: the one they were trained by. head: R^2 of the head along each direction, (K,), where there was one.
    """

    layers: TrainableLayers
    progress: Progress
    recipe: DiscoveryRecipe
    head: Tensor | None


def learn(
    denoiser: Denoiser,
    loan: Loan,
    samples: Samples,
    components: Components,
    recipe: DiscoveryRecipe,
    name: str,
    frozen: Sequence[Any],
    options: RunOptions,
) -> Learned:
    """Train a slider for each component; where memory does not hold the decoder's gradients, through a head.

    frozen: what a run depends on beside the recipe and the components. Raises what `Training.run` raises.
    """
    run = _Run(denoiser, loan, samples, components, name, frozen, options)
    try:
        return run.learned(recipe)
    except (RuntimeError, MemoryError) as error:
        if recipe.embedding != DECODER or not is_out_of_memory(error):
            raise
    free_unused()
    learned = run.learned(replace(recipe, embedding=HEAD))
    learned.progress.note(NO_ROOM)
    return learned


@dataclass(frozen=True)
class _Run:
    denoiser: Denoiser
    loan: Loan
    samples: Samples
    components: Components
    name: str
    frozen: Sequence[Any]
    options: RunOptions

    def learned(self, recipe: DiscoveryRecipe) -> Learned:
        denoiser, samples, components = self.denoiser, self.samples, self.components
        generator = torch.Generator().manual_seed(recipe.seed)
        embed, fit = samples.phi, None
        if recipe.embedding == HEAD:
            embed, fit = self._head(recipe, generator)
        layers = TrainableLayers(denoiser.patcher, recipe, generator, count=len(components))
        directions, part = components.directions.to(denoiser.device), (recipe.start_percent, recipe.end_percent)
        lessons = DirectionLessons(samples.seen, directions, embed, part, recipe.both_signs, generator)
        training = Training(denoiser, layers, lessons, recipe, generator)
        shown = DirectionPreviews(denoiser, layers, samples.held_out[0])
        previews = Previews(shown, self.loan, None, self.options.preview_every)
        digest = digest_of(recipe.digest(), *self.frozen, components.directions)
        return Learned(layers, run_kept(training, self.name, digest, self.options, previews), recipe, fit)

    def _head(self, recipe: DiscoveryRecipe, generator: torch.Generator) -> tuple[Embed, Tensor]:
        """A head fitted to the samples, and its R^2 along each direction on those held out."""
        latents, embeddings = self._pairs(self.samples.seen)
        head = fitted_head(latents, embeddings, recipe.head_steps, generator)
        directions = self.components.directions.to(self.denoiser.device)
        return head, explained(head, *self._pairs(self.samples.held_out), directions).cpu()

    def _pairs(self, trajectories: Sequence[Trajectories]) -> tuple[Tensor, Tensor]:
        """Clean latents and their embeddings, of all steps."""
        clean, embeddings = (
            torch.cat([getattr(each, name).flatten(0, 1) for each in trajectories]).to(self.denoiser.device)
            for name in ("clean", "embeddings")
        )
        return clean, embeddings
