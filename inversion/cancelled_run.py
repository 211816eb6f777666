"""Where a cancelled inversion stood, kept so that the same one goes on from there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..comfy_host.identity import digest_of
from ..comfy_host.types import ModelPatcher
from .devices import on_device
from .fitted_steps import Down
from .settings import InversionRecipe

Group = tuple[int, int]  # pictures that go together: the first, and how many


def group_of(rows: Tensor) -> Group:
    """Of rows that follow each other, (n,)."""
    return int(rows[0]), len(rows)


@dataclass(frozen=True)
class Standing:
    """The state of a run between two steps.

    ups: for each group of pictures, its latents at the noise levels met on the way up, (rows, C, ...) each, from the
    clean ones; trajectory: (n + 1, B, C, ...), once all are up. downs: how far each has come down. at_once: the most
    pictures that a group has.
    """

    ups: dict[Group, list[Tensor]]
    trajectory: Tensor | None
    downs: dict[Group, Down]
    at_once: int

    def on(self, device: torch.device) -> Standing:
        """A copy with its tensors there."""
        ups, trajectory = on_device((self.ups, self.trajectory), device)
        downs = {group: down.on(device) for group, down in self.downs.items()}
        return Standing(ups, trajectory, downs, self.at_once)


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
    return digest_of(recipe.as_dict(), latents, positive, negative)
