"""Where a cancelled inversion stood, kept so that the same one goes on from there."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..training.keeping import digest_of
from .down import Down
from .recipe import InversionRecipe


@dataclass
class Standing:
    """The state of a run between two steps, on the CPU.

    trajectory: (n + 1, B, C, ...) of the plain inversion. downs: how far each group of pictures is, by its first
    picture and their number. at_once: the most pictures that a group has.
    """

    trajectory: Tensor
    downs: dict[tuple[int, int], Down]
    at_once: int


class Unfinished:
    """The last run that was cancelled in some place, such as a node of a graph, if it is still to be finished.

    It goes on for the same model only, which is known by its object and its patches, with the same inputs.
    """

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._model: weakref.ref | None = None
        self._patches: Any = None
        self._digest = ""

    def take(self, patcher: ModelPatcher, digest: str) -> Standing | None:
        """What is kept of this run, which is then kept no more."""
        standing, self.standing = self.standing, None
        if standing is None or self._model() is not patcher:
            return None
        return standing if (self._patches, self._digest) == (patcher.patches_uuid, digest) else None

    def keep(self, patcher: ModelPatcher, digest: str, standing: Standing) -> None:
        self.standing, self._model = standing, weakref.ref(patcher)
        self._patches, self._digest = patcher.patches_uuid, digest


def digest_of_inputs(latents: Tensor, positive: list, negative: list, recipe: InversionRecipe) -> str:
    """A hash of what an inversion is made of, beside the model. latents: (B, C, ...); the others CONDITIONING."""
    values, shape = tree_flatten([positive, negative])
    return digest_of(recipe.as_dict(), tuple(latents.shape), latents, repr(shape), *values)
