"""Several sliders as one: exactly, with the sum of their ranks, or compressed to a rank by singular values.

The change of a layer is the sum of strength_i * up_i @ down_i: B A with B = [strength_i * up_i] side by side and
A = [down_i] one below the other. With B = Q_B R_B and A^T = Q_A R_A it is Q_B (R_B R_A^T) Q_A^T, and since Q_B
and Q_A have orthonormal columns, its singular values are those of the small matrix in the middle. The dense product
is never formed. If changes that are no such products meet in a layer, it takes the model to multiply them out; then
their difference is kept or approximated.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from .adapters.kind import BIAS, DIFF, DOWN, UP
from .changes import Adapter, Change, LowRank, kind_of
from .gate import Gate
from .slider import Slider, SliderInfo
from .stack import Stack

# Singular values below this part of the largest are rounding of float32 factors, not part of the change
_ROUNDING = 1e-7


WeightedChanges = Sequence[tuple[Slider, Change, float]]  # of one layer: each with its slider and its strength


class ModelWeights(Protocol):
    """What merging asks of a model, see `comfy_host.model_weights`."""

    def slice_of(self, slider: Slider, name: str) -> Hashable:
        """Return what the name of a slider's layer stands for, the same for all names of a layer."""

    def differences(self, name: str, changes: WeightedChanges) -> dict[str, Tensor]:
        """Return what changes of one layer add to each of its parameters, in float32."""


@dataclass(frozen=True)
class Merged:
    """The layers of a merged slider.

    error: the Frobenius norm of what was left out, relative to the norm of all that could be compressed; 0 if exact.
    uncompressed: the layers that are no low-rank products, and so were kept as they are although a rank was given.
    """

    layers: Mapping[str, Change]
    error: float
    uncompressed: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max(change.rank for change in self.layers.values())


def merge(sliders: Iterable[tuple[Slider, float]], rank: int = 0, model: ModelWeights | None = None) -> Merged:
    """Add sliders up at strengths, layer by layer; a slider given twice counts with the sum of its strengths.

    rank: the largest rank of a merged layer, or 0 to keep all. A change that is no low-rank product and alone in its
        layer is kept as it is, times the strength.
    model: that the sliders are for. With it, two names of one weight are one layer, and changes of any kind can meet:
        they become a difference of the weight, to which a rank applies as well.
    Raises ValueError if nothing is left at these strengths, if changes of one layer do not fit each other, or if one
        that is no low-rank product meets another without the model.
    """
    if rank < 0:
        raise ValueError(f"The rank of a merged slider is at least 1, or 0 to keep all; got {rank}.")
    layers: dict[str, Change] = {}
    uncompressed: list[str] = []
    lost = total = 0.0
    for name, changes in _by_layer(sliders, model).items():
        values, kept = None, 0
        products = [(slider, change, strength) for slider, change, strength in changes if isinstance(change, LowRank)]
        if len(products) == len(changes):
            layers[name] = joined = _joined(name, products)
            if rank:
                layers[name], kept, values = compressed(joined, rank)
        elif len(changes) == 1:
            layers[name] = _alone(*changes[0][1:])
            uncompressed += [name] if rank else []
        elif model is None:
            raise ValueError(_met(name, changes))
        else:
            layers[name], kept, values = _difference(model.differences(name, changes), rank)
        if values is not None:
            lost += float(values[kept:].square().sum())
            total += float(values.square().sum())
    return Merged(layers, sqrt(lost / total) if total else 0.0, tuple(uncompressed))


def compressed(change: LowRank, rank: int) -> tuple[LowRank, int, Tensor]:
    """Return the best approximation of a change of at most this rank, in float32.

    With it come its rank, which is lower if the change needs no more, and all singular values of the change, float64,
    in descending order.
    """
    up, down = change.up.flatten(1).float(), change.down.flatten(1).float()
    q_up, r_up = torch.linalg.qr(up)  # (out, r) -> (out, m), (m, r)
    q_down, r_down = torch.linalg.qr(down.T)  # (in, r) -> (in, n), (n, r)
    left, values, right = torch.linalg.svd(r_up.double() @ r_down.double().T, full_matrices=False)
    kept = _rank_within(rank, values)
    half = values[:kept].sqrt()  # shared out over both factors, so that neither overflows half precision alone
    new_up = q_up @ (left[:, :kept] * half).float()
    new_down = (half[:, None] * right[:kept]).float() @ q_down.T
    shaped = LowRank(
        new_down.reshape(kept, *change.down.shape[1:]), new_up.reshape(len(new_up), kept, *change.up.shape[2:])
    )
    return shaped, kept, values


def _difference(differences: dict[str, Tensor], rank: int) -> tuple[Change, int, Tensor | None]:
    """Make a layer's change of what it adds to parameters, with rank and singular values as `compressed` has them."""
    parts = {BIAS if parameter == "bias" else DIFF: tensor for parameter, tensor in differences.items()}
    weight = parts.get(DIFF)
    if not rank or weight is None or weight.ndim < 2:
        return Adapter(parts), 0, None
    del parts[DIFF]
    low_rank, kept, values = _approximated(weight, rank)
    return (Adapter({DOWN: low_rank.down, UP: low_rank.up, **parts}) if parts else low_rank), kept, values


def _approximated(weight: Tensor, rank: int) -> tuple[LowRank, int, Tensor]:
    """Approximate a difference of a weight, as `compressed` does a product."""
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    kept = _rank_within(rank, values)
    half = values[:kept].sqrt()
    down, up = half[:, None] * right[:kept], left[:, :kept] * half
    shaped = LowRank(down.reshape(kept, *weight.shape[1:]), up.reshape(*up.shape, *(1 for _ in weight.shape[2:])))
    return shaped, kept, values.double()


def _rank_within(rank: int, values: Tensor) -> int:
    """Return the rank to keep of these singular values, in descending order: no more than they need."""
    return max(1, min(rank, int((values > _ROUNDING * values[0]).sum())))


def _by_layer(
    sliders: Iterable[tuple[Slider, float]], model: ModelWeights | None
) -> dict[str, list[tuple[Slider, Change, float]]]:
    """Return the changes of each layer, every slider once, by the first name that a weight is met under."""
    strengths: dict[str, float] = {}
    known: dict[str, Slider] = {}
    for slider, strength in sliders:
        known[slider.content_hash] = slider
        strengths[slider.content_hash] = strengths.get(slider.content_hash, 0.0) + strength
    by_layer: dict[str, list[tuple[Slider, Change, float]]] = {}
    names: dict[Hashable, str] = {}
    for mark, slider in known.items():
        if strengths[mark]:
            for name, change in slider.layers.items():
                name = names.setdefault(model.slice_of(slider, name) if model else name, name)
                by_layer.setdefault(name, []).append((slider, change, strengths[mark]))
    if not by_layer:
        raise ValueError("There is nothing to merge: no slider of the stack has a strength other than zero.")
    return by_layer


def _alone(change: Change, strength: float) -> Change:
    return change.scaled(strength) if strength != 1 else change


def _met(name: str, changes: WeightedChanges) -> str:
    names = " and ".join(f"'{slider.name}' ({kind_of(change)})" for slider, change, _ in changes)
    return (
        f"Layer {name} is changed by {names}, and not all of these changes are low-rank products, so it takes the "
        "model to merge them: connect the one that the sliders are for. Or keep these sliders apart: combined in one "
        "stack they act together."
    )


def _joined(name: str, changes: Sequence[tuple[Slider, LowRank, float]]) -> LowRank:
    """Join the changes of one layer to one product, in float32 unless there is just one as it is."""
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
    """Return the shape of the weight that a change is for."""
    return (change.up.shape[0], *change.down.shape[1:])


def merged_stack(sliders: Stack, rank: int, name: str, model: ModelWeights | None = None) -> tuple[Stack, Merged]:
    """Merge a stack at its strengths into a stack of one slider; also returns how its layers were merged.

    rank, model: see `merge`. name: of the slider that comes out.
    Raises ValueError if the stack is empty, one of its sliders is swept, or they act in different parts of sampling
    or of guidance.
    """
    if not len(sliders):
        raise ValueError("Merge Sliders needs at least one slider; the stack is empty.")
    if swept := [stacked.slider.name for stacked in sliders if len(set(stacked.strength)) > 1]:
        raise ValueError(f"Slider '{swept[0]}' is swept; merge the sliders as they are before the sweep.")
    first = sliders[0]
    for stacked in sliders:
        if stacked.window != first.window:
            raise ValueError(
                f"Sliders '{first.slider.name}' and '{stacked.slider.name}' act in different parts of sampling or of "
                "guidance. One slider cannot do both: gate them alike, or merge them apart."
            )
    merged = merge([(stacked.slider, stacked.strength[0]) for stacked in sliders], rank, model)
    slider = Slider(name.strip() or "merged", merged.layers, _info(sliders))
    return Stack((replace(first, slider=slider, strength=(1.0,)),)), merged


def _info(sliders: Stack) -> SliderInfo:
    """What the header of the merged slider says: what it was merged of, and what all of them have in common.

    Of one slider alone, at another rank, the ends and the calibration stay.
    """
    infos = [stacked.slider.info for stacked in sliders]
    alone = infos[0].at_strength(sliders[0].strength[0]) if len(sliders) == 1 else SliderInfo()

    def common(values: list[str]) -> str:
        return values[0] if len(set(values)) == 1 else ""

    parts = [{"name": stacked.slider.name, "strength": stacked.strength[0]} for stacked in sliders]
    gates = sliders[0].gates
    return SliderInfo(
        recipe={"merged": parts},
        family=common([info.family for info in infos]),
        base_model_hash=common([info.base_model_hash for info in infos]),
        gate=gates[0] if len(gates) == 1 else Gate(),
        less=alone.less,
        more=alone.more,
        useful_range=alone.useful_range,
        calibration=alone.calibration,
    )
