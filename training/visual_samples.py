"""Training samples of a visual slider: images of the same scene at several strengths.

Symbols: x0_i the clean latent of image i and s_i its strength; n the noise, the same for all images of a set; x_i
the latent of image i at sigma; D the frozen model's denoised estimate, d = (x - D(x)) / sigma its
prediction in linear form, and t_i = (x_i - x0_i) / sigma the prediction that would be right. For eps- and v-models
t_i is n, for flow models n - x0_i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ends import NOTHING, relative_size
from .recipe import VisualRecipe
from .samples import Sample, SampleSource, Warnings
from .visual_fit import STEPS, NoisyImages

if TYPE_CHECKING:
    from ..comfy_host.predictor import ActingLayers, DiffusionPredictor
    from .pairs.image_sets import ImageSet

SIGMAS = 1000  # of the schedule to draw from, as many as the models were trained on
HELD_OUT = 5  # sigmas that a slider is measured at, for each of as many sets at most
LITTLE = 1e-2  # of the latents: images of one picture that were stored with loss differ by as much


@dataclass(frozen=True, eq=False)
class LatentSet:
    """An image set as the model sees it.

    latents: (N, C, ..., h, w), one an image, in the model's own scale. strengths: N, all different. prompt: of the
    scene. mask: (H, W) in [0, 1], of any size that covers the same image; None for everywhere. name: what to call
    the set in a message.
    """

    latents: Tensor
    strengths: tuple[float, ...]
    prompt: str = ""
    mask: Tensor | None = None
    name: str = ""

    def difference(self) -> float:
        """Return how far the images lie apart where the mask lets the loss count: rms(x - mean) / rms(x)."""
        mask = self.mask_for_latents()
        weight = 1.0 if mask is None else mask.sqrt()
        latents = self.latents.float()
        return relative_size(weight * (latents - latents.mean(dim=0)), weight * latents)

    def mask_for_latents(self) -> Tensor | None:
        """(1, 1, ..., h, w): the share of each latent pixel that the mask lets through."""
        if self.mask is None:
            return None
        *others, height, width = self.latents.shape[1:]
        small = F.adaptive_avg_pool2d(self.mask[None, None].float(), (height, width))
        return small.reshape(1, *(1 for _ in others), height, width)


def encode_sets(
    sets: Iterable[ImageSet], encode: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor]
) -> list[LatentSet]:
    """Encode image sets to latents.

    encode: (1, H, W, 3) in [0, 1] -> (1, C, ...) latents, such as ComfyUI's `VAE.encode`. scale: from those to the
    model's own scale, such as `latents.to_model_scale` makes. Images go one by one: VAEs for video take a batch for
    the frames of one video.
    """
    return [
        LatentSet(
            scale(torch.cat([encode(image[None]) for image in one.images])),
            one.strengths,
            one.prompt,
            one.mask,
            one.name or one.label(0),
        )
        for one in sets
    ]


class VisualSamples(SampleSource):
    """Endless training samples: a set, a sigma and a noise at a time, with all images of the set as batch entries.

    Every set comes once, in random order, before one comes again. Methods, by `recipe.method`:

    "noise" (Concept Sliders, arXiv 2311.12092, visual sliders): at x_i with the slider at s_i, predict t_i. For two
    images, A at -a and B at +a, and an eps-model that is

        |eps*_{-a}(x_A) - n|^2 + |eps*_{+a}(x_B) - n|^2

    Images at strength 0 are left out: there the slider does nothing.

    "ADDifT": the frozen model at one image is the teacher of the slider at another. The frozen estimate misses an
    image by e_i = D(x_i) - x0_i, which draws it towards what the model expects: A, that shows less than usual,
    towards more, and B towards less. What both share misses alike. The slider at x_i is to miss as the frozen model
    does at x_j:

        target_i = t_i + (d(x_j) - t_j),   with the slider at s_i - s_j

    For eps- and v-models this is target_i = d(x_j), as published; for flow models the terms t_i - t_j = x0_j - x0_i
    take out that their predictions contain the images themselves. It moves the estimate at x_i by
    D* - D(x_i) = e_j - e_i, which has the direction of x0_i - x0_j. So with the student at B and the teacher at A
    the strength must be positive, and with roles swapped negative; and as that is the way from strength s_j to s_i,
    it is their difference. (The published code keeps one size of strength for all; then a strength means something
    else than it does with "noise".) Roles are swapped within the batch: entry i is student once and teacher once, of
    a partner drawn by a random cyclic shift.

    Its errors count as those of a velocity on every model: by 1 / c_in(sigma)^2, which is 1 + sigma^2 for eps- and
    v-models, and 1 for flow models. What images differ in is hidden by noise first, and only there the frozen model
    misses it; as errors of eps, those of the faintest noise would drown it, and nothing would be learned.

    With `recipe.both_signs` off, only entries with a positive strength are trained on.
    """

    def __init__(
        self,
        denoiser: DiffusionPredictor,
        sets: Sequence[LatentSet],
        recipe: VisualRecipe,
        generator: torch.Generator,
        warnings: Warnings | None = None,
    ):
        """warnings: gets the sets whose images differ little, or not at all, where their masks let the loss count.

        Raises ValueError if there is no set, or one of which no image would be trained on, or none of which the
        images differ.
        """
        if not sets:
            raise ValueError("There are no image pairs to train on.")
        self.denoiser, self.sets, self.recipe, self.generator = denoiser, list(sets), recipe, generator
        for index, one in enumerate(self.sets):
            if recipe.method == "noise" and not any(self._is_trained(torch.tensor(one.strengths))):
                raise ValueError(
                    f"Image set {index + 1} has the strengths {', '.join(f'{s:g}' for s in one.strengths)}: "
                    f"none above 0 to train on."
                )
        self._check_differences(Warnings() if warnings is None else warnings)
        sigmas = denoiser.sigmas(SIGMAS)[:-1]
        start, end = (round(fraction * len(sigmas)) for fraction in (recipe.start_percent, recipe.end_percent))
        self._sigmas = sigmas[min(start, len(sigmas) - 1) : max(end, start + 1)]
        self._waiting: list[int] = []

    def __next__(self) -> Sample:
        if not self._waiting:
            self._waiting = torch.randperm(len(self.sets), generator=self.generator).tolist()
        one = self.sets[self._waiting.pop(0)]
        index = int(torch.randint(len(self._sigmas), (), generator=self.generator))
        noise = torch.randn(one.latents.shape[1:], generator=self.generator)
        sigma, device = self._sigmas[index], self.denoiser.device
        clean = one.latents.to(device, torch.float32)
        x = self.denoiser.scale_noise(sigma, noise.to(device).expand_as(clean), clean)
        target = (x - clean) / sigma
        strengths, weight = torch.tensor(one.strengths, device=device), 1.0
        if self.recipe.method == "ADDifT":
            weight = float(self.denoiser.input_scale(sigma)) ** -2
            teacher = self._partners(len(clean)).to(device)
            missed = self.denoiser.predict(x, sigma, [one.prompt])[0] - target
            target = target + missed[teacher]
            strengths = strengths - strengths[teacher]
        trained = self._is_trained(strengths)
        mask = one.mask_for_latents()
        return Sample(
            x[trained],
            sigma,
            target[trained],
            strengths[trained, None],
            one.prompt,
            None if mask is None else mask.to(device),
            weight,
        )

    def held_out(self) -> list[Sample]:
        """Return samples at noises and sigmas that are not trained on: the sigmas lie between those.

        They ask for what ADDifT asks for, whatever the method: what the frozen model misses more in one image than in
        the other, per unit of strength. "noise" trains on this, and on what all images miss alike.
        """
        generator, last = torch.Generator().manual_seed((self.recipe.seed + 1) % 2**64), len(self._sigmas) - 1
        places = torch.linspace(0, max(last - 1, 0), HELD_OUT).round().long().unique().tolist()
        between = [(self._sigmas[place] * self._sigmas[min(place + 1, last)]).sqrt() for place in places]
        found: list[Sample] = []
        for one in self.sets[:HELD_OUT]:
            for sigma in between:
                found += self._asked(one, sigma, generator)
        return found

    def _asked(self, one: LatentSet, sigma: Tensor, generator: torch.Generator) -> Iterator[Sample]:
        """Of an image set, the entries to be moved up, at +1, and those to be moved down, at -1."""
        device = self.denoiser.device
        noise = torch.randn(one.latents.shape[1:], generator=generator).to(device)
        clean, strengths = one.latents.to(device, torch.float32), torch.tensor(one.strengths, device=device)
        x = self.denoiser.scale_noise(sigma, noise.expand_as(clean), clean)
        d = self.denoiser.predict(x, sigma, [one.prompt])[0]
        missed, gaps = d - (x - clean) / sigma, strengths - strengths.roll(1)
        asked = (missed.roll(1, 0) - missed) / gaps.abs().view(-1, *(1 for _ in clean.shape[1:]))
        mask = one.mask_for_latents()
        for sign in (1.0, -1.0):
            chosen = sign * gaps > 0
            signs = torch.full((int(chosen.sum()), 1), sign, device=device)
            where = None if mask is None else mask.to(device)
            yield Sample(x[chosen], sigma, (d + asked)[chosen], signs, one.prompt, where)

    def moves(self) -> Callable[[ActingLayers, float], float] | None:
        if not self.recipe.fit_strength:
            return None
        first = round(self.recipe.start_percent * STEPS)
        return NoisyImages(self.denoiser, self.sets, self.recipe.seed, first).moved

    def state(self) -> dict[str, Any]:
        return {"waiting": list(self._waiting)}

    def restore(self, state: dict[str, Any]) -> None:
        self._waiting = list(state["waiting"])

    def _check_differences(self, warnings: Warnings) -> None:
        """Warn of sets whose images hardly differ; raise ValueError if there is nothing to learn from any."""
        apart = [(f"{n} ({one.name})".removesuffix(" ()"), one.difference()) for n, one in enumerate(self.sets, 1)]
        alike = [name for name, size in apart if size <= NOTHING]
        if alike:
            said = f"The images of set {', '.join(alike)} do not differ, and there is nothing to learn from them"
            if len(alike) == len(apart):
                raise ValueError(
                    f"{said}. Take images that differ in what the slider is to turn, within their masks."
                )
            warnings.add(f"{said}.")
        for name, size in apart:
            if NOTHING < size < LITTLE:
                warnings.add(
                    f"There is little to learn from set {name}: its images differ by {size:.2g} of their size."
                )

    def _is_trained(self, strengths: Tensor) -> Tensor:
        """(N,) of bool: True for batch entries at which the slider acts and is trained."""
        return strengths != 0 if self.recipe.both_signs else strengths > 0

    def _partners(self, count: int) -> Tensor:
        """Draw the teacher of each of `count` students, never itself: (count,) indices."""
        shift = int(torch.randint(1, count, (), generator=self.generator))
        return (torch.arange(count) + shift) % count
