"""A small slider as the tensors of its file, and reading files that may be damaged."""

from pathlib import Path

import torch
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider

LAYERS = 3
NAMED_ERRORS = (ValueError, FileNotFoundError, OSError)


def state() -> dict[str, torch.Tensor]:
    """One good layer."""
    return {"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(4, 2)}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for i in range(LAYERS):
        name = f"lora_unet_mid_block_attentions_{i}_proj_in"
        found[f"{name}.lora_down.weight"] = torch.randn(2, 5, generator=generator)
        found[f"{name}.lora_up.weight"] = torch.randn(6, 2, generator=generator)
        found[f"{name}.alpha"] = torch.tensor(1.0)
    return found


def loaded_or_refused(path: Path) -> Slider | None:
    """The whole slider, or None after an error that names the file. Anything else fails the test."""
    try:
        slider = load_slider(path)
    except NAMED_ERRORS as error:
        assert str(path) in str(error)
        return None
    for layer in slider.layers.values():
        layer.check("x")
    return slider
