"""Several sliders as one: exactly, with the sum of their ranks, or compressed to a rank by singular values.

The change of a layer is the sum of strength_i * up_i @ down_i: B A with B = [strength_i * up_i] side by side and
A = [down_i] one below the other. With B = Q_B R_B and A^T = Q_A R_A it is Q_B (R_B R_A^T) Q_A^T, and since Q_B
and Q_A have orthonormal columns, its singular values are those of the small matrix in the middle. The dense product
is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from .kinds import kind_of
from .slider import Change, LowRank, Slider

# Singular values below this part of the largest are rounding of float32 factors, not part of the change
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Merged:
    """The layers of a merged slider.

    error: the Frobenius norm of what was left out, relative to the norm of all low-rank changes together; 0 if exact.
    whole: the layers that are no low-rank products, and so were kept whole although a rank was asked for.
    """

    layers: Mapping[str, Change]
    error: float
    whole: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max(change.rank for change in self.layers.values())


def merge(sliders: Iterable[tuple[Slider, float]], rank: int = 0) -> Merged:
    """The sum of sliders at strengths, layer by layer. The same slider twice acts with the sum of its strengths.

    rank: the largest rank of a merged layer, or 0 to keep all. Layers that are no low-rank products are kept as they
        are, times the strength.
    Raises ValueError if nothing is left at these strengths, if changes of one layer do not fit each other, or if one
        that is no low-rank product meets another.
    """
    if rank < 0:
        raise ValueError(f"The rank of a merged slider is at least 1, or 0 to keep all; got {rank}.")
    by_layer = _by_layer(sliders)
    layers: dict[str, Change] = {}
    kept_whole: list[str] = []
    lost = whole = 0.0
    for name, changes in by_layer.items():
        if not all(isinstance(change, LowRank) for _, change, _ in changes):
            layers[name] = _alone(name, changes)
            kept_whole.append(name)
            continue
        joined = _joined(name, changes)
        if not rank:
            layers[name] = joined
            continue
        layers[name], kept, values = compressed(joined, rank)
        lost += float(values[kept:].square().sum())
        whole += float(values.square().sum())
    return Merged(layers, sqrt(lost / whole) if whole else 0.0, tuple(kept_whole) if rank else ())


def compressed(change: LowRank, rank: int) -> tuple[LowRank, int, Tensor]:
    """The best approximation of a change of at most this rank, in float32.

    Returns it with its rank, which is lower where the change needs no more, and all singular values of the change,
    float64, in descending order.
    """
    up, down = change.up.flatten(1).float(), change.down.flatten(1).float()
    q_up, r_up = torch.linalg.qr(up)  # (out, r) -> (out, m), (m, r)
    q_down, r_down = torch.linalg.qr(down.T)  # (in, r) -> (in, n), (n, r)
    left, values, right = torch.linalg.svd(r_up.double() @ r_down.double().T, full_matrices=False)
    kept = max(1, min(rank, int((values > _ROUNDING * values[0]).sum())))
    half = values[:kept].sqrt()  # shared out over both factors, so that neither overflows half precision alone
    new_up = q_up @ (left[:, :kept] * half).float()
    new_down = (half[:, None] * right[:kept]).float() @ q_down.T
    shaped = LowRank(
        new_down.reshape(kept, *change.down.shape[1:]), new_up.reshape(len(new_up), kept, *change.up.shape[2:])
    )
    return shaped, kept, values


def _by_layer(sliders: Iterable[tuple[Slider, float]]) -> dict[str, list[tuple[Slider, Change, float]]]:
    """(slider, change, strength) of each layer, every slider once."""
    strengths: dict[str, float] = {}
    known: dict[str, Slider] = {}
    for slider, strength in sliders:
        known[slider.fingerprint] = slider
        strengths[slider.fingerprint] = strengths.get(slider.fingerprint, 0.0) + strength
    by_layer: dict[str, list[tuple[Slider, Change, float]]] = {}
    for mark, slider in known.items():
        if strengths[mark]:
            for name, change in slider.layers.items():
                by_layer.setdefault(name, []).append((slider, change, strengths[mark]))
    if not by_layer:
        raise ValueError("There is nothing to merge: no slider of the stack has a strength other than zero.")
    return by_layer


def _alone(name: str, changes: Sequence[tuple[Slider, Change, float]]) -> Change:
    slider, change, strength = changes[0]
    if len(changes) > 1:
        names = " and ".join(f"'{s.name}' ({kind_of(c)})" for s, c, _ in changes)
        raise ValueError(
            f"Layer {name} is changed by {names}, and not all of these changes are low-rank products, so they cannot "
            "be merged into one. Keep these sliders apart: combined in one stack they act together."
        )
    return change.scaled(strength) if strength != 1 else change


def _joined(name: str, changes: Sequence[tuple[Slider, LowRank, float]]) -> LowRank:
    """The changes of one layer as one product, in float32 unless there is just one as it is."""
    if len(changes) == 1:
        _, change, strength = changes[0]
        return change if strength == 1 else LowRank(change.down.float(), change.up.float() * strength)
    # Files give a 1x1 convolution and a linear layer either form; the longer one has all that there is to know
    shape = max((_shape(change) for _, change, _ in changes), key=len)
    downs, ups = [], []
    for slider, change, strength in changes:
        try:
            fitted = change.fitted(shape, name)
        except ValueError as error:
            raise ValueError(
                f"Layer {name}: slider '{slider.name}' changes a weight of shape {_shape(change)} and slider "
                f"'{changes[0][0].name}' one of shape {_shape(changes[0][1])}. They were made for different models."
            ) from error
        downs.append(fitted.down.float())
        ups.append(fitted.up.float() * strength)
    return LowRank(torch.cat(downs), torch.cat(ups, dim=1))


def _shape(change: LowRank) -> tuple[int, ...]:
    """The shape of the weight that a change is for."""
    return (change.up.shape[0], *change.down.shape[1:])
