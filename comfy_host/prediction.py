"""What a model's network predicts: eps, v, a flow's velocity."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher


def prediction_of(patcher: ModelPatcher) -> str:
    """What the model's network is taken to predict, by the host's names, such as "EPS" or "V_PREDICTION"."""
    kinds = type(patcher.get_model_object("model_sampling")).__mro__
    names = (kind.__name__ for kind in kinds if kind.__module__ == comfy.model_sampling.__name__)
    return ", ".join(name for name in names if not name.startswith("ModelSampling"))


def is_flow(sampling: Any) -> bool:
    """Whether a model, by its `model_sampling`, is a flow model."""
    return isinstance(sampling, comfy.model_sampling.CONST)
