"""Sliders on quantised weights: tensors in packed formats, with scales of their own."""

import json

import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import FAMILIES, difference, one_evaluation, random_slider, tiny_model

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"


FORMATS = sorted(QUANT_ALGOS.keys() - {"convrot_w4a4"})  # that one takes layers of 256 inputs and more


def quantised_model(quant_format: str) -> tuple[ModelPatcher, ModelPatcher]:
    """The tiny model with its linear layers in one of the host's formats, and the same numbers in float32."""
    config_class, unet_config, _, _ = FAMILIES[FAMILY]
    config = config_class(dict(unet_config))
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.float32, torch.float32)
    packed, single = config.get_model({}, device=torch.device("cpu")), tiny_model(FAMILY)
    layout = QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
    state, formats = {}, {}
    for name, module in single.model.diffusion_model.named_modules():
        for parameter, own in module._parameters.items():
            if own is None:
                continue
            state[f"{name}.{parameter}"] = own
            if isinstance(module, torch.nn.Linear) and parameter == "weight":
                packed_weight = QuantizedTensor.from_float(own.data, layout, scale="recalculate")
                state |= packed_weight.state_dict(f"{name}.weight")
                formats[name] = {"format": quant_format, "params": {}}
                own.data = packed_weight.dequantize().float()
    metadata = {"_quantization_metadata": json.dumps({"layers": formats})}
    state, _ = comfy.utils.convert_old_quants(state, metadata=metadata)
    with torch.inference_mode():  # as in a node
        packed.diffusion_model.load_state_dict(state, strict=False)
    return ModelPatcher(packed, torch.device("cpu"), torch.device("cpu")), single


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_quantised_weights_stay_as_they_are(mode, quant_format):
    """Packed tensors with a scale of their own: sliders act by rows there, DoRA on the unpacked numbers."""
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
    close = max(1e-4, 3 * bare)  # the host rounds the inputs of 8-bit integers, too
    assert difference(one_evaluation(packed, stack, mode), exact) < close < 0.1 * effect
    assert state_of(packed.model).merged.uses == 0
