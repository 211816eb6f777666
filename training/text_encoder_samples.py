"""Sliders of the text encoder alone, trained without a diffusion model.

The encoding E of the target prompt is taught to move as the concept's ends lie apart (the textual objective, arXiv
2311.12092, eq. 8, in the space of encodings, as Text Slider has it, arXiv 2509.18831):

    E*(c_t & p) <- E(c_t & p) + s share [ E(c+ & p) - E(c- & p) ]        at strength s = +1 and -1, for every p
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..comfy_host.text_encoders import TextEncoder
from .concept import Concept
from .objectives import textual_target
from .recipe import EncoderRecipe
from .samples import Sample


class EncoderSamples:
    """Endless training samples: every concept with each of its phrases, at +1 and -1.

    Raises ValueError, naming the prompts, if a concept's prompts are encoded to different lengths.
    """

    def __init__(self, encoder: TextEncoder, recipe: EncoderRecipe, generator: torch.Generator):
        self.recipe, self.generator = recipe, generator
        with torch.no_grad():
            self.encoded = [each for concept in recipe.concepts for each in self._encode(encoder, concept)]
        self._weights = torch.tensor([weight for *_, weight in self.encoded])

    def __next__(self) -> Sample:
        index = int(torch.multinomial(self._weights, 1, generator=self.generator))
        prompt, target, change, mask, _ = self.encoded[index]
        sign = 1.0
        if self.recipe.both_signs:
            sign -= 2.0 * int(torch.randint(0, 2, (), generator=self.generator))
        strengths = torch.full((1, 1), sign, device=target.device)
        moved = textual_target(target, change, sign * self.recipe.share)
        return Sample(target, torch.ones((), device=target.device), moved, strengths, prompt, mask)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

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
