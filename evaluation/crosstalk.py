"""Cross-talk: what each slider of a stack moves, beside what it is for, measured from images.

Slider i is sampled at strength +s and at -s on the same prompts and seeds; r is what is read of an image:

    E[i, j] = mean over prompts and seeds of (r_j(+s) - r_j(-s)) / 2

half of what lies between its two ends, and so how far it moves reading j from strength 0 to s, on the average of both
sides. The readings are a probe's where the model has one. Else they are directions in a vision encoder, one for each
slider: with u_jk half of what lies between the embeddings of slider j's two ends for prompt and seed k, and d_jk the
mean of its u over all the other prompts and seeds,

    E[i, j] = mean over k of <u_ik, d_jk>  /  mean over k of <u_jk, d_jk>

in parts of the own effect of slider j. As no u meets itself, what is noise in a single image is no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .measurements import Measured, attribute_of
from .sweep_plan import PlannedImage

CHANCE = 2.0  # standard errors: what is within them may be chance


@dataclass(frozen=True)
class Effects:
    """What each of K sliders moves, in J columns, from strength 0 to `strength`.

    sliders: their names. hashes: of their contents. columns: the names of what is read. own: for each slider the
    column that it is for. matrix, errors: (K, J), the effects and their standard errors over the prompts and seeds.
    series: the number of these. encoder: the vision encoder in which columns are directions, in parts of the effect
    of the slider of that name; "" where they are a probe's readings.
    """

    sliders: tuple[str, ...]
    hashes: tuple[str, ...]
    columns: tuple[str, ...]
    own: tuple[int, ...]
    matrix: Tensor
    errors: Tensor
    strength: float
    series: int
    encoder: str = ""

    @property
    def beyond_chance(self) -> Tensor:
        """Where an effect is more than twice its standard error, (K, J)."""
        return self.matrix.abs() > CHANCE * self.errors

    def own_effect(self, slider: int) -> float:
        """Return what a slider moves in the column that it is for."""
        return float(self.matrix[slider, self.own[slider]])

    def of(self, hashes: Sequence[str]) -> Effects:
        """Return the rows of these sliders, in this order; the columns stay. Raises KeyError for one not measured."""
        at = {mark: row for row, mark in enumerate(self.hashes)}
        rows = [at[mark] for mark in hashes]
        return replace(
            self,
            sliders=tuple(self.sliders[row] for row in rows),
            hashes=tuple(hashes),
            own=tuple(self.own[row] for row in rows),
            matrix=self.matrix[rows],
            errors=self.errors[rows],
        )


def effects_of(measured: Measured) -> Effects:
    """Work out the effects from a run whose plan has two strengths, -s and s.

    Prompts and seeds that a cancelled run has not sampled with all sliders are left out.
    Raises ValueError for other strengths, for fewer than two prompts and seeds, without which chance cannot be told
    from an effect, or if neither a probe nor a vision encoder has read the images.
    """
    strength = measured.plan.strengths[-1]
    if measured.plan.strengths != (-strength, strength):
        raise ValueError(f"Effects are measured at two strengths, -s and s; got {measured.plan.strengths}.")
    ends = _ends(measured, strength)
    count = ends.shape[1]
    if count < 2:
        raise ValueError(
            f"Effects take at least two prompts and seeds, sampled with every slider, to be told from chance; got "
            f"{count}. Give more seeds."
        )
    names = tuple(placed.slider.name for placed in measured.plan.stack)
    if measured.readings:
        encoder, columns = "", tuple(measured.readings)
        moved = _moved(torch.stack(list(measured.readings.values()), 1), ends)
        means = [dict(zip(columns, row)) for row in moved.mean(1).tolist()]
        own = tuple(columns.index(attribute_of(name, mean)) for name, mean in zip(names, means))
    elif measured.embeddings:
        encoder, embeddings = next(iter(measured.embeddings.items()))
        moved, columns, own = _along_directions(_moved(embeddings, ends)), names, tuple(range(len(names)))
    else:
        raise ValueError("Effects are read by a probe or by a vision encoder; these images were read by neither.")
    return Effects(
        names,
        tuple(placed.slider.content_hash for placed in measured.plan.stack),
        columns,
        own,
        moved.mean(1),
        moved.std(1) / count**0.5,
        strength,
        count,
        encoder,
    )


def complete_series(measured: Measured) -> int:
    """Return of how many prompts and seeds a run, maybe a cancelled one, has the images that effects take."""
    return _ends(measured, measured.plan.strengths[-1]).shape[1]


def _ends(measured: Measured, strength: float) -> Tensor:
    """Return which images are each slider's at -s and s: (K, N, 2), for the N prompts and seeds that have all."""
    at = {planned: index for index, planned in enumerate(measured.made)}
    found = []
    for original in (planned for planned in measured.made if planned.slider is None):
        both = [
            [PlannedImage(original.prompt, original.seed, slider, s) for s in (-strength, strength)]
            for slider in range(len(measured.plan.stack))
        ]
        if all(planned in at for pair in both for planned in pair):
            found.append([[at[planned] for planned in pair] for pair in both])
    return torch.tensor(found, dtype=torch.long).reshape(-1, len(measured.plan.stack), 2).transpose(0, 1)


def _moved(values: Tensor, ends: Tensor) -> Tensor:
    """Half of what lies between both ends: (images, J) and (K, N, 2) -> (K, N, J)."""
    values = values.double()
    return (values[ends[..., 1]] - values[ends[..., 0]]) / 2


def _along_directions(moved: Tensor) -> Tensor:
    """Movements of embeddings along each slider's own, in parts of it: (K, N, E) -> (K, N, K).

    A slider that has no direction of its own, since its images move each in another, has effect 0 in its column.
    """
    count = moved.shape[1]
    directions = (moved.sum(1, keepdim=True) - moved) / (count - 1)  # of all but one, (K, N, E)
    along = torch.einsum("ike,jke->ikj", moved, directions)
    own = along.mean(1).diagonal()
    return torch.where(own > 0, along / own, 0.0)
