"""Sliders of the text encoder alone, trained without a diffusion model.

The encoding E of the target prompt is taught to move as the concept's ends lie apart (the textual objective, arXiv
2311.12092, eq. 8, in the space of encodings, as Text Slider has it, arXiv 2509.18831):

    E*(c_t & p) <- E(c_t & p) + s share [ E(c+ & p) - E(c- & p) ]        at strengths s up to `reach`, for every p

An encoding is no linear function of the weights: a slider that is trained at 1 and -1 alone turns back beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..comfy_host.text_encoders import TextEncoder
from .concept import Concept
from .ends import NOTHING, relative_size
from .objectives import textual_target
from .recipe import EncoderRecipe
from .samples import Sample, SampleSource, Warnings

if TYPE_CHECKING:
    from .trainable_layers import TrainableLayers

STEPS = 4  # from strength 0 to the reach, by which the useful range is found
LITTLE = 1e-2  # of an encoding: ends that can be seen lie at 0.15 and above, synonyms at 0.03


class EncoderSamples(SampleSource):
    """Endless training samples: every concept with each of its phrases, at strengths of either sign.

    warnings: gets a sentence for every concept whose ends have nearly the same encoding.
    Raises ValueError, naming the prompts, if a concept's prompts are encoded to different lengths, or the ends of all
    concepts alike.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        recipe: EncoderRecipe,
        generator: torch.Generator,
        warnings: Warnings | None = None,
    ):
        self.recipe, self.generator = recipe, generator
        self.warnings = Warnings() if warnings is None else warnings
        with torch.no_grad():
            self.encoded = [each for concept in recipe.concepts for each in self._encode(encoder, concept)]
            self._check_differences()
        self._weights = torch.tensor([weight for *_, weight in self.encoded])

    def __next__(self) -> Sample:
        index = int(torch.multinomial(self._weights, 1, generator=self.generator))
        return self._sample(index, self._strength())

    def held_out(self) -> list[Sample]:
        """Return every prompt at +1 and at -1: an encoding has neither noise nor sigmas that could be others."""
        return [self._sample(index, sign) for index in range(len(self.encoded)) for sign in (1.0, -1.0)]

    def useful_range(self, encoder: TextEncoder, layers: TrainableLayers) -> tuple[float, float]:
        """Return the strengths, up to the recipe's reach, between which the encodings move on towards both ends.

        The range ends where they turn back, or move further beside the way from one end to the other than along it.
        """
        reach = self.recipe.reach
        steps = [reach * n / STEPS for n in range(STEPS + 1)]
        return self._reaches(encoder, layers, [-s for s in steps]), self._reaches(encoder, layers, steps)

    def _reaches(self, encoder: TextEncoder, layers: TrainableLayers, strengths: Sequence[float]) -> float:
        """The last of these strengths, from 0 on, up to which the encodings move on; at least the one after 0."""
        moved = [self._moved(encoder, layers, strength) for strength in strengths]
        towards = [along / strengths[-1] for along, _ in moved]
        for n in range(2, len(strengths)):
            along, beside = moved[n]
            if towards[n] <= towards[n - 1] or beside > abs(along):
                return strengths[n - 1]
        return strengths[-1]

    @torch.no_grad()
    def _moved(self, encoder: TextEncoder, layers: TrainableLayers, strength: float) -> tuple[float, float]:
        """How far the encodings move along E(c+ & p) - E(c- & p) and beside it, in parts of it, as means over p."""
        along, beside = [], []
        with layers.acting(torch.full((1, 1), strength)):
            for prompt, target, change, *_ in self.encoded:
                if change.any():
                    moved = torch.cat(encoder.parts(prompt), dim=1) - target
                    along.append(float((moved * change).sum() / change.square().sum()))
                    beside.append(float((moved - along[-1] * change).norm() / change.norm()))
        return sum(along) / len(along), sum(beside) / len(beside)

    def _strength(self) -> float:
        """Draw a strength: 1 or, half the time, up to the reach; of either sign where both are trained."""
        beyond = max(0.0, 2.0 * float(torch.rand((), generator=self.generator)) - 1.0)
        size = 1.0 + (self.recipe.reach - 1.0) * beyond
        negative = self.recipe.both_signs and int(torch.randint(0, 2, (), generator=self.generator))
        return -size if negative else size

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _sample(self, index: int, strength: float) -> Sample:
        prompt, target, change, mask, _ = self.encoded[index]
        strengths = torch.full((1, 1), strength, device=target.device)
        moved = textual_target(target, change, strength * self.recipe.share)
        return Sample(target, torch.ones((), device=target.device), moved, strengths, prompt, mask)

    def _check_differences(self) -> None:
        """Warn of ends that differ little; raise ValueError if there is nothing to learn from any."""
        apart = {
            prompt: relative_size(mask.sqrt() * change, mask.sqrt() * target)
            for prompt, target, change, mask, _ in self.encoded
        }
        if max(apart.values()) <= NOTHING:
            raise ValueError("Both ends of every concept have the same encoding, and there is nothing to learn.")
        for prompt, size in apart.items():
            if size < LITTLE:
                self.warnings.add(
                    f"There is little to learn for {prompt!r}: the encodings of its ends differ by {size:.2g} of "
                    "their size."
                )

    def _encode(self, encoder: TextEncoder, concept: Concept) -> list[tuple[str, Tensor, Tensor, Tensor, float]]:
        """(prompt, E(c_t & p), E(c+ & p) - E(c- & p), where the loss counts, weight) for every phrase."""
        found = []
        for target, (more, less) in zip(concept.targets(), concept.ends()):
            parts = [encoder.parts(prompt) for prompt in (target, more, less)]
            lengths = [sum(part.shape[1] for part in each) for each in parts]
            if len(set(lengths)) > 1:
                raise ValueError(
                    f"The prompts {target!r}, {more!r} and {less!r} are encoded to different lengths ({lengths}), so "
                    "that their encodings cannot be compared; use as many words in each."
                )
            sign = -1.0 if concept.erase else 1.0
            e_target, e_more, e_less = (torch.cat(each, dim=1) for each in parts)
            weight = concept.weight / len(concept.phrases)
            found.append((target, e_target, sign * (e_more - e_less), _balanced(parts[0]), weight))
        return found


def _balanced(parts: list[Tensor]) -> Tensor:
    """(1, V): weights with which the encoding and the pooled one count alike, whatever their sizes."""
    smallest = min(part.shape[1] for part in parts)
    return torch.cat([torch.full_like(part, smallest / part.shape[1]) for part in parts], dim=1)
