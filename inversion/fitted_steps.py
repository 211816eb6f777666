"""How far sampling has come down from the noise, and what was fitted on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .devices import on_device
from .null_text import Embedding, Fitted


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
        there = Down(*on_device((self.x, self.embedding), device))
        there.moved, there.losses, there.passes = self.moved, list(self.losses), self.passes
        there._kept = on_device(self._kept, device)
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
