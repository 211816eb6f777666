"""Sliders on models that the host compiles."""

import shutil

import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from concept_sliders.sliders import ways
from concept_sliders.sliders.runtime import apply_sliders
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.host.tiny import difference, random_slider, sample, tiny_model

FAMILY = "SD15"


def compiled_by(backend: str, model):
    return TorchCompileModel.execute(model, backend).args[0]


@pytest.mark.parametrize("sliders_first", [True, False])
@pytest.mark.parametrize("way", ways.WAYS[1:])
def test_sliders_act_whether_they_were_applied_before_or_after(way, sliders_first):
    acts_as_uncompiled("cudagraphs", way, sliders_first)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_to_machine_code():
    """Both ways on one compiled model: what was compiled is used again."""
    for way in ways.WAYS[1:]:
        acts_as_uncompiled("inductor", way, sliders_first=False)


def acts_as_uncompiled(backend: str, way: str, sliders_first: bool) -> None:
    """However the strength changes; and without sliders, the compiled model is as it was."""
    model = tiny_model(FAMILY)
    slider, bare = random_slider(model), sample(model, FAMILY)
    strengths = (1.0, -0.5)
    expected = [sample(apply_sliders(model, Stack.of(slider, s), way), FAMILY) for s in strengths]
    torch.compiler.reset()
    compiled = compiled_by(backend, model)
    assert difference(sample(compiled, FAMILY), bare) < 1e-4
    for strength, want in zip(strengths, expected, strict=True):
        if sliders_first:
            acted = compiled_by(backend, apply_sliders(model, Stack.of(slider, strength), way))
        else:
            acted = apply_sliders(compiled, Stack.of(slider, strength), way)
        assert difference(sample(acted, FAMILY), want) < 1e-4
    assert difference(sample(compiled, FAMILY), bare) < 1e-4
