"""Where a cancelled inversion stood, kept so that the same one goes on from there."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Unfinished:
    """The last run that was cancelled in some place, such as a node of a graph, as the model it ran on keeps it.

    It is an attachment of the host's patcher: it goes when the model goes, and clones of the model have none of it.
    """

    digest: str
    standing: Standing | None

    def on_model_patcher_clone(self) -> Unfinished:
        return Unfinished("", None)


def take(patcher: ModelPatcher, place: str, digest: str) -> Standing | None:
    """What the model keeps of this very run in this place; whatever it keeps there, it keeps no more."""
    kept = patcher.get_attachment(_key(place))
    patcher.remove_attachments(_key(place))
    return kept.standing if kept is not None and kept.digest == _of_model(patcher, digest) else None


def keep(patcher: ModelPatcher, place: str, digest: str, standing: Standing) -> None:
    patcher.set_attachments(_key(place), Unfinished(_of_model(patcher, digest), standing))


def is_kept(patcher: ModelPatcher, place: str) -> bool:
    """Whether a run in this place was cancelled, and not yet queued again."""
    kept = patcher.get_attachment(_key(place))
    return kept is not None and kept.standing is not None


def _key(place: str) -> str:
    return f"concept_sliders.unfinished.{place}"


def _of_model(patcher: ModelPatcher, digest: str) -> str:
    return f"{digest} {patcher.patches_uuid}"


def digest_of_inputs(latents: Tensor, positive: list, negative: list, recipe: InversionRecipe) -> str:
    """A hash of what an inversion is made of, beside the model. latents: (B, C, ...); the others CONDITIONING."""
    values, shape = tree_flatten([positive, negative])
    return digest_of(recipe.as_dict(), tuple(latents.shape), latents, repr(shape), *values)
