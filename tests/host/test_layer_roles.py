"""Layers by their role mean the same on every family."""

import pytest
import torch
from concept_sliders.sliders.matching import layer_names
from concept_sliders.tests.host.families import FAMILIES
from concept_sliders.training.layers import CHOICES, choose

# They attend to the prompt and to the picture in one
JOINT = (
    "Stable Cascade",
    "SD3",
    "Flux",
    "Chroma",
    "AuraFlow",
    "HunyuanImage",
    "HunyuanVideo",
    "Lumina",
    "Z-Image",
    "Qwen",
    "HiDream",
    "OmniGen",
    "Boogu",
    "Krea",
    "Lens",
    "Ernie",
    "Ideogram",
    "MageFlow",
    "JoyImage",
    "Mochi",
    "CogVideoX",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles(family):
    with torch.inference_mode():
        paths = list(layer_names(FAMILIES[family].build()))
    taken = {}
    for choice in CHOICES:
        if choice == "cross-attention" and family.startswith(JOINT):
            with pytest.raises(ValueError, match="attends to the prompt and to the picture at once"):
                choose(paths, choice)
            taken[choice] = set()
        else:
            taken[choice] = set(choose(paths, choice))
    assert taken["all"] == set(paths)
    assert taken["self-attention"] | taken["cross-attention"] == taken["attention"]
    assert not taken["self-attention"] & taken["cross-attention"]
    left = taken["all"] - taken["all but cross-attention"] - taken["cross-attention"]
    assert all(any(word in path for word in ("time", "t_embedder", "t_block", "tmlp")) for path in left)
    assert len(taken["attention"]) >= 2  # in and out
