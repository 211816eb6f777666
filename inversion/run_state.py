"""Where a cancelled inversion stood, kept so that the same one goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.identity import digest_of
from ..comfy_host.memory import to_device
from .null_text import Embedding, Fitted
from .settings import InversionSettings


class Down:
    """Some rows on their way down. x: (rows, C, ...), where they are. embedding: the last one found."""

    def __init__(self, x: Tensor, embedding: Embedding):
        self.x, self.embedding = x, embedding
        self.moved = 0  # steps
        self.losses: list[tuple[float, float]] = []  # of every step fitted: the first and the last, mean of the rows
        self.passes = 0  # forward passes of fitting, in rows: as many backward
        self._kept: list[Embedding] = []

    @property
    def done(self) -> int:
        """Steps whose embedding was found."""
        return len(self._kept)

    def keep(self, fitted: Fitted) -> None:
        """The embedding of the next step."""
        self.embedding = fitted.embedding
        self._kept.append(fitted.embedding)
        first, last = (sum(row[at] for row in fitted.losses) / len(fitted.losses) for at in (0, -1))
        self.losses.append((first, last))
        self.passes += sum(map(len, fitted.losses))

    def move(self, x: Tensor) -> None:
        self.x, self.moved = x, self.moved + 1

    def on(self, device: torch.device) -> Down:
        """A copy with its tensors there."""
        there = Down(*to_device((self.x, self.embedding), device))
        there.moved, there.losses, there.passes = self.moved, list(self.losses), self.passes
        there._kept = to_device(self._kept, device)
        return there

    def said(self) -> str:
        return ", loss {:.3g} to {:.3g}".format(*self.losses[-1]) if self.losses else ""

    def parts(self, steps: int) -> tuple[Tensor, ...]:
        """Each part of the embeddings, (steps, rows, ...); steps that were not reached take the last one found."""
        every = [*self._kept, *[self.embedding] * (steps - self.done)]
        return tuple(torch.stack(each).float().cpu() for each in zip(*every))

    def error(self, clean: Tensor, steps: int) -> Tensor:
        """(rows,): distance from the clean latents as a share of their size; NaN if it is not all the way down."""
        apart = ((self.x - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)).cpu()
        return apart if self.moved == steps else torch.full_like(apart, float("nan"))


def losses_of(downs: Sequence[Down]) -> tuple[tuple[float, float], ...]:
    """For every step that any group has done, (first, last), the mean over the groups' pictures."""
    found = []
    for step in range(max(down.done for down in downs)):
        pairs = [(*down.losses[step], len(down.x)) for down in downs if down.done > step]
        count = sum(rows for *_, rows in pairs)
        found.append(tuple(sum(pair[at] * pair[2] for pair in pairs) / count for at in (0, 1)))
    return tuple(found)


def errors_of(downs: Sequence[Down], clean: Tensor, steps: int) -> Tensor:
    """(B,) errors of all groups, which follow each other in the batch."""
    parts = clean.split([len(down.x) for down in downs])
    return torch.cat([down.error(part, steps) for down, part in zip(downs, parts)])


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
        ups, trajectory = to_device((self.ups, self.trajectory), device)
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


def was_cancelled(patcher: ModelPatcher, place: str) -> bool:
    """Whether a run in this place was cancelled, and not yet queued again."""
    kept = patcher.get_attachment(_key(place))
    return kept is not None and kept.standing is not None


def _key(place: str) -> str:
    return f"concept_sliders.unfinished.{place}"


def _of_model(patcher: ModelPatcher, digest: str) -> str:
    return f"{digest} {patcher.patches_uuid}"


def digest_of_inputs(latents: Tensor, positive: list, negative: list, settings: InversionSettings) -> str:
    """A hash of what an inversion is made of, beside the model. latents: (B, C, ...); the others CONDITIONING."""
    return digest_of(settings.as_dict(), latents, positive, negative)
