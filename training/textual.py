"""From a model and a recipe to a slider: the whole of one textual training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..sliders.slider import Slider, SliderInfo
from .denoiser import Denoiser
from .in_place import NewLayers, borrowed, family, fingerprint
from .loop import Point, Progress, train_textual
from .recipe import Recipe

USEFUL_RANGE = (-1.5, 1.5)  # a first guess: what strengths mean is set by eta
PREVIEW_LEVEL = 0.4  # of sampling: noisy enough to change, clear enough to see


@dataclass(frozen=True)
class Watch:
    """What a run asks and tells. preview: (3, C, ...) clean latents at strength -1, 0 and +1, or None."""

    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[Progress, Tensor | None], None] = lambda progress, preview: None
    preview_every: int = 50


@dataclass(frozen=True)
class Trained:
    slider: Slider
    progress: Progress


def train_slider(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list],
    recipe: Recipe,
    latents: Tensor,
    name: str,
    watch: Watch | None = None,
) -> Trained | None:
    """Train a textual slider on the model in place.

    conditionings: the host's CONDITIONING for every prompt of the recipe and for "".
    latents: (B, C, ...) of the size to train at; B images a step. Only their shape matters.
    Returns None if it was stopped before the first step. Raises ValueError for layers the model does not have,
    FloatingPointError if training diverges; the model is given back as it was in every case.
    """
    watch = watch or Watch()
    generator = torch.Generator().manual_seed(recipe.seed)
    with borrowed(patcher, memory_required=_memory(patcher, latents, recipe)):
        zeros = torch.zeros(latents.shape, device=patcher.load_device)
        layers = NewLayers(patcher, recipe.layers, recipe.rank, generator)
        denoiser = Denoiser(patcher, {p: _ordinary(c) for p, c in conditionings.items()}, zeros)
        strip = _Strip(denoiser, layers, recipe, zeros.shape[1:])

        def after_step(progress: Progress, point: Point) -> None:
            due = watch.preview_every and progress.steps % watch.preview_every == 0
            watch.progress(progress, strip() if due else None)

        progress = train_textual(
            denoiser,
            layers,
            recipe,
            tuple(latents.shape),
            generator,
            watch.should_stop,
            after_step,
            # the host's layers raise it as soon as the user cancels, and take the cancel back by doing so
            cancelled=InterruptProcessingException,
        )
        if not progress.steps:
            return None
        concept = recipe.concept
        info = SliderInfo(
            less=concept.less,
            more=concept.more,
            useful_range=USEFUL_RANGE,
            recipe={**recipe.as_dict(), "steps_done": progress.steps},
            family=family(patcher),
            base_model_hash=fingerprint(patcher.model),
        )
        return Trained(Slider(name, layers.finished(), info), progress)


class _Strip:
    """The same half-done latent finished in one step at strength -1, 0 and +1: a quick look at the effect."""

    def __init__(self, denoiser: Denoiser, layers: NewLayers, recipe: Recipe, shape: tuple[int, ...]):
        self.denoiser, self.layers, self.prompt = denoiser, layers, recipe.concept.target
        noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(recipe.seed)).to(denoiser.device)
        sigmas = denoiser.sigmas(recipe.rollout_steps)
        level = int(PREVIEW_LEVEL * recipe.rollout_steps)
        x = denoiser.scale_noise(sigmas[0], noise)
        with torch.no_grad():
            for sigma, following in zip(sigmas[:level], sigmas[1 : level + 1]):
                x = x + (following - sigma) * denoiser(x, sigma, [self.prompt])[0]
        self.x, self.sigma = x.repeat(3, *(1 for _ in shape)), sigmas[level]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        strengths = torch.tensor([[-1.0], [0.0], [1.0]], device=self.x.device)
        with self.layers.bank.acting(strengths):
            return self.x - self.sigma * self.denoiser(self.x, self.sigma, [self.prompt])[0]


def _ordinary(conditioning: list) -> list:
    """The conditioning outside inference mode, so that autograd may keep it."""

    def plain(value):
        return value.clone() if isinstance(value, Tensor) else value

    return [[plain(tensor), {key: plain(v) for key, v in options.items()}] for tensor, options in conditioning]


def _memory(patcher: ModelPatcher, latents: Tensor, recipe: Recipe) -> int:
    """Bytes to keep free: the frozen predictions run as one batch of all prompts."""
    rows = latents.shape[0] * max(2, len(recipe.concept.prompts()))
    return int(patcher.model.memory_required([rows, *latents.shape[1:]]))
