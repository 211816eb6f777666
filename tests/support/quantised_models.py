"""Tiny models with quantised weights."""

import json

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from concept_sliders.tests.support.tiny import FAMILIES, tiny_model

FAMILY = "SD15"

FORMATS = sorted(QUANT_ALGOS.keys() - {"convrot_w4a4"})  # that one takes layers of 256 inputs and more


def quantised_model(quant_format: str) -> tuple[ModelPatcher, ModelPatcher]:
    """The tiny model with its linear layers in one of ComfyUI's formats, and the same numbers in float32."""
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
