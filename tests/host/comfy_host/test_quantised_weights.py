"""Sliders on quantised weights: tensors in packed formats, with scales of their own."""

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.quantised_models import FORMATS, quantised_model
from concept_sliders.tests.support.tiny import difference, one_evaluation, random_slider

MODES = mode_choice.MODES[1:]


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_quantised_weights_stay_as_they_are(mode, quant_format):
    """Packed tensors with a scale of their own: sliders act unmerged there, DoRA on the unpacked numbers."""
    packed, single = quantised_model(quant_format)
    kinds = [type(module.weight.data) for module in packed.model.modules() if hasattr(module, "quant_format")]
    assert len(kinds) > 10
    assert set(kinds) == {QuantizedTensor}
    torch.manual_seed(0)
    low = random_slider(single, 1)
    layers = {
        name: Adapter(
            {
                "lora_up.weight": change.up,
                "lora_down.weight": change.down,
                "dora_scale": 1 + torch.rand(change.up.shape[0], 1),
            }
        )
        for name, change in low.layers.items()
        if "attn1" in name
    }
    stack = Stack.of(low, 0.7) + Stack.of(Slider("dora", layers), 0.4)
    bare = difference(one_evaluation(packed, Stack(), mode), one_evaluation(single, Stack(), mode))
    exact = one_evaluation(single, stack, "unmerged")
    effect = difference(one_evaluation(single, Stack(), mode), exact)
    close = max(1e-4, 3 * bare)  # ComfyUI rounds the inputs of 8-bit integers, too
    assert difference(one_evaluation(packed, stack, mode), exact) < close < 0.1 * effect
    assert state_of(packed.model).merged.uses == 0
