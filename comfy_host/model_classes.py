"""ComfyUI's classes of models that not every supported version has, by name."""

from __future__ import annotations

import comfy.model_base
from comfy.model_base import BaseModel


def model_classes(*names: str) -> tuple[type[BaseModel], ...]:
    """Return those of the named classes of `comfy.model_base` that this version of ComfyUI has, for `isinstance`.

    No model can be of a class that its ComfyUI lacks, so leaving one out changes nothing.
    """
    return tuple(getattr(comfy.model_base, name) for name in names if hasattr(comfy.model_base, name))
