"""Sliders mixed with each other: each keeps itself and takes on multiples of the others, so that less is shared.

The multiples come of the weights, by Gram and Schmidt, or of the measured effects, by least squares. Weights that are
orthogonal do not by themselves have effects that are (arXiv 2510.03262): measure what comes out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .changes import LowRank, kind_of
from .merge_sliders import merge
from .slider import Slider
from .stack import Stack

_NOTHING_LEFT = 1e-3  # of a slider's norm: what is left below this is rounding of half-precision weights


def gram_schmidt(gram: Tensor) -> Tensor:
    """Return the mixture that makes each slider orthogonal to all before it.

    gram: (K, K), the inner products of the sliders, see `weight_products`. Returns C (K, K), lower triangular with
    ones on its diagonal: slider i becomes the sum over l of C[i, l] times slider l, and C gram C^T is diagonal.
    Raises ValueError, naming its position from 1 on, for a slider that is a sum of multiples of those before it.
    """
    gram = gram.double()
    mixture = torch.eye(len(gram), dtype=torch.float64)
    for i in range(1, len(gram)):
        multiples = torch.linalg.pinv(gram[:i, :i], hermitian=True) @ gram[:i, i]
        left = gram[i, i] - multiples @ gram[:i, i]
        if left <= _NOTHING_LEFT**2 * gram[i, i]:
            raise ValueError(
                f"Slider {i + 1} of the stack is the sum of multiples of those before it, so that nothing of it is "
                "left. Is it in the stack twice?"
            )
        mixture[i, :i] = -multiples
    return mixture


def without_side_effects(effects: Tensor, errors: Tensor, own: tuple[int, ...], in_order: bool = False) -> Tensor:
    """Return the mixture whose effects on what the other sliders are for are the least.

    effects, errors: (K, J), what each of K sliders moves at one strength, and the standard errors. own: for each
    slider the column that it is for. Slider i stays and takes on c_l times each other slider l, with the c that
    minimise

        sum over j of (E[i, j] + sum over l of c_l E[l, j])^2  +  sum over l of c_l^2 sum over j of error[l, j]^2

    over the columns j that other sliders are for: least squares, in the expectation over errors of measurement, so
    that an effect no larger than its error is not corrected by large multiples.
    in_order: the others are those before it alone. So it has to be where the columns are the sliders' own directions,
    which turn as the sliders do: what takes on the later ones too is then a dual basis, no orthogonal one.
    Returns C (K, K) with ones on its diagonal, see `gram_schmidt`.
    """
    effects, errors = effects.double(), errors.double()
    mixture = torch.eye(len(effects), dtype=torch.float64)
    for i in range(len(effects)):
        others = list(range(i)) if in_order else [k for k in range(len(effects)) if k != i]
        columns = sorted({own[k] for k in others} - {own[i]})
        if columns:
            of_others = effects[others][:, columns].T  # (columns, others)
            noise = errors[others][:, columns].square().sum(1).sqrt().diag()
            wanted = torch.cat([-effects[i, columns], torch.zeros(len(others), dtype=torch.float64)])
            mixture[i, others] = torch.linalg.pinv(torch.cat([of_others, noise])) @ wanted
    return mixture


def mixed(stack: Stack, mixture: Tensor) -> Stack:
    """Return a stack of the same sliders, of which slider i is the sum over l of mixture[i, l] times slider l.

    They stay low-rank products, with ranks that add up, and keep their names, labels, strengths and gates, but not a
    calibration, which was measured of the slider as it was.
    Raises ValueError as `check_mixable` does, or if sliders were made for different models.
    """
    check_mixable(stack)
    found = []
    for placed, row in zip(stack, mixture.tolist()):
        parts = [(other.slider, factor) for other, factor in zip(stack, row) if factor]
        if all(slider is placed.slider for slider, _ in parts):
            found.append(placed)
            continue
        layers = merge(parts).layers
        info = replace(placed.slider.info, calibration=None)
        found.append(replace(placed, slider=Slider(placed.slider.name, layers, info)))
    return Stack(tuple(found))


def check_mixable(stack: Stack) -> None:
    """Raise ValueError, naming the sliders, unless all act at the same times and are low-rank products."""
    for placed in stack:
        first = stack[0]
        if placed.window != first.window:
            raise ValueError(
                f"Sliders '{first.slider.name}' and '{placed.slider.name}' act in different parts of sampling or of "
                "guidance: a part of one that is taken into the other would act at other times. Combine them first "
                "and gate them together, with Gate Sliders after Combine Sliders."
            )
        for name, change in placed.slider.layers.items():
            if not isinstance(change, LowRank):
                raise ValueError(
                    f"Slider '{placed.slider.name}': its change of layer {name} is a {kind_of(change)}. Only "
                    "low-rank sliders can be orthogonalised; combine this one afterwards."
                )
