"""The automatic choice of eta: auditions of a concept before training.

An audition at strength s samples with the change that the slider would be trained to make, see `comfy_host.audition`;
here by Euler's method, as rollouts do:

    d  <-  d(c_t), with guidance  +  s eta mean_p [ d(c+ & p) - d(c- & p) ]

z_n(s, eta) is its final latent from noise n; z_n(c+) and z_n(c-) are those of plain sampling by the prompts of both
ends, by the mean over p of their predictions, under the same guidance. The audition moves the latent along the
difference of the opposing prompts, D_n = z_n(c+) - z_n(c-), by the share

    moved(eta) = sum_n < z_n(+1, eta) - z_n(-1, eta), D_n >  /  sum_n < D_n, D_n >

and eta is the smallest of `ETAS` with which that is `ENOUGH`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from .concept import Concept
from .objectives import textual_change
from .rollout import roll_out

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor
    from .recipe import TextualRecipe

log = logging.getLogger(__name__)

ETAS = tuple(0.25 * 2 ** (step / 2) for step in range(11))  # 0.25 to 8
ENOUGH = 0.6
SEEDS = 4


@dataclass(frozen=True)
class EtaChoice:
    """An eta, and how far the audition with it moves the latent, as a share of the way between the prompts."""

    eta: float
    moved: float


def choose_eta(moved: Callable[[float], float]) -> EtaChoice:
    """Return the smallest of `ETAS` that moves the latent by `ENOUGH`, or else the one that moves it furthest.

    moved: the share by which an eta moves it. It is asked for every second eta from the smallest on, as a large one
    may overshoot, and then for the one in between.
    """
    tried: dict[int, float] = {}
    for step in range(0, len(ETAS), 2):
        tried[step] = moved(ETAS[step])
        if tried[step] >= ENOUGH:
            if step:
                tried[step - 1] = moved(ETAS[step - 1])
            chosen = min(each for each, share in tried.items() if share >= ENOUGH)
            break
    else:
        chosen = max(tried, key=tried.__getitem__)
    return EtaChoice(ETAS[chosen], tried[chosen])


class Auditions:
    """Auditions of one concept on a few seeds, by the frozen model.

    shape: (C, ...) of a latent. recipe: its guidance, rollout_steps, phrases_per_sigma and seed count.
    """

    def __init__(self, denoiser: DiffusionPredictor, concept: Concept, recipe: TextualRecipe, shape: Sequence[int]):
        self.denoiser, self.concept, self.guidance = denoiser, concept, recipe.guidance
        self._at_once = min(recipe.phrases_per_sigma or len(concept.phrases), len(concept.phrases))
        self._noise = torch.randn((SEEDS, *shape), generator=torch.Generator().manual_seed(recipe.seed))
        self._sigmas = denoiser.sigmas(recipe.rollout_steps)
        more, less = (
            torch.cat([self._final(noise[None], self._by_prompts(end)) for noise in self._noise]) for end in (0, 1)
        )
        self._apart = more - less

    def moved(self, eta: float) -> float:
        """Return how far an eta moves the latent from -1 to +1, as a share of the way between the prompts."""
        etas = eta * torch.tensor([1.0, -1.0], device=self.denoiser.device)
        finals = [self._final(torch.stack([noise, noise]), self._audition(etas)) for noise in self._noise]
        more, less = torch.stack(finals, dim=1)
        return float(((more - less) * self._apart).sum() / self._apart.square().sum())

    def _final(self, noise: Tensor, guided: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(B, C, ...) -> (B, C, ...). One seed at a time: that takes no more memory than training does."""
        return roll_out(guided, noise.to(self.denoiser.device), self._sigmas, self.denoiser.scale_noise).end.float()

    def _by_prompts(self, end: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided prediction at one end, 0 for more and 1 for less: (B, C, ...) -> (B, C, ...)."""
        turns = self._ends_in_turn()

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            d, d_empty = self._asked(x, sigma, [pair[end] for pair in next(turns)])
            return self._guided(d.mean(dim=0), d_empty)

        return guided

    def _audition(self, etas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided prediction at the target with the change added, at an eta (B,) for each entry."""
        turns = self._ends_in_turn()

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            more, less = zip(*next(turns), strict=True)
            d, d_empty = self._asked(x, sigma, [self.concept.target, *more, *less])
            change = textual_change(*d[1:].chunk(2))
            return self._guided(d[0], d_empty) + etas.view(-1, *(1 for _ in x.shape[1:])) * change

        return guided

    def _asked(self, x: Tensor, sigma: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """(prompts, B, C, ...) and the prediction at the empty prompt; without guidance that is not asked for."""
        if self.guidance == 1:
            d = self.denoiser.predict(x, sigma, prompts)
            return d, d[0]
        d = self.denoiser.predict(x, sigma, [*prompts, ""])
        return d[:-1], d[-1]

    def _guided(self, d: Tensor, d_empty: Tensor) -> Tensor:
        return d if self.guidance == 1 else classifier_free(d, d_empty, self.guidance)

    def _ends_in_turn(self) -> Iterator[list[tuple[str, str]]]:
        """The ends with the phrases that a step predicts with: all phrases in turn, the same in every run."""
        ends = self.concept.ends()
        for first in count(0, self._at_once):
            yield [ends[(first + place) % len(ends)] for place in range(self._at_once)]


def told_etas(choices: Sequence[EtaChoice]) -> str:
    """Put etas into words."""
    automatic = ", automatic: moves the image by {:.0%} of the way between the prompts"
    return "; ".join(f"eta {each.eta:.3g}" + (automatic.format(each.moved) if each.moved else "") for each in choices)


def warn_etas(choices: Sequence[EtaChoice]) -> str:
    """Return a warning about automatic etas that move the image too little; "" if none does."""
    if not any(each.moved and each.moved < ENOUGH for each in choices):
        return ""
    return (
        f"No eta up to {ETAS[-1]:g} moves the image by {ENOUGH:.0%} of the way between the prompts; the one is taken "
        "that moves it furthest. Take prompts that lie further apart, or set eta."
    )


def choose_for(
    denoiser: DiffusionPredictor, concept: Concept, recipe: TextualRecipe, shape: Sequence[int]
) -> EtaChoice:
    """Return the eta of a concept: its own, or if that is 0 the one that its auditions choose. shape: (C, ...)."""
    if concept.eta:
        return EtaChoice(concept.eta, 0.0)
    choice = choose_eta(Auditions(denoiser, concept, recipe, shape).moved)
    log.info("Training on %r and %r: %s.", concept.less, concept.more, told_etas([choice]))
    if warning := warn_etas([choice]):
        log.warning("Training: %s", warning)
    return choice
