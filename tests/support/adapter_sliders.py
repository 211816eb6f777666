"""Sliders with adapters of every kind."""

import torch
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.slider import Slider
from concept_sliders.tests.support.tiny import random_slider, tensors_of


def parts_of(kind: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Returns the tensors of an adapter of this kind for a weight of this shape."""
    out, ones = shape[0], (1,) * (len(shape) - 2)

    def r(*size):
        return 0.3 * torch.randn(*size)

    low = {"lora_up.weight": r(out, 2, *ones), "lora_down.weight": r(2, *shape[1:]), "alpha": torch.tensor(1.0)}
    return {
        "DoRA": {**low, "dora_scale": 1 + r(out, 1, *ones).abs()},
        "OFT": {"oft_blocks": r(2, out // 2, out // 2)},
        "BOFT": {"oft_blocks": r(2, out // 4, 4, 4), "alpha": torch.tensor(0.0)},
        "GLoRA": {
            "a1.weight": r(2, shape[1]),
            "a2.weight": r(shape[1], 2),
            "b1.weight": r(2, shape[1]),
            "b2.weight": r(out, 2),
        },
        "LoKr": {"lokr_w1": r(2, 2), "lokr_w2": r(out // 2, shape[1] // 2, *shape[2:])},
    }[kind]


def slider_of(model, kind: str, seed: int = 3) -> tuple[Slider, dict[str, torch.Tensor]]:
    """Returns a slider with adapters of this kind on the model's self-attention, and the tensors of its file."""
    if kind == "LoRA":
        slider = random_slider(model, seed)
        return slider, tensors_of(slider)
    torch.manual_seed(seed)
    layers, tensors = {}, {}
    for path, name in layer_names(model).items():
        if "attn1" in path:
            parts = parts_of(kind, weight_shape(model.model.get_submodule(path), name))
            layers[name] = Adapter(parts)
            tensors |= {f"{name}.{ending}": tensor for ending, tensor in parts.items()}
    return Slider(kind, layers), tensors


def adapted_parts(shape: tuple[int, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """One change of each kind for a linear layer or convolution, as their trainers write it."""
    out, inner = shape[0], shape[1] * (shape[2] * shape[3] if len(shape) > 2 else 1)
    ones = (1,) * (len(shape) - 2)

    def r(*size):
        return 0.3 * torch.randn(*size)

    low = {"lora_up.weight": r(out, 2, *ones), "lora_down.weight": r(2, *shape[1:]), "alpha": torch.tensor(1.0)}
    return {
        "LoHa": {"hada_w1_a": r(out, 2), "hada_w1_b": r(2, inner), "hada_w2_a": r(out, 2), "hada_w2_b": r(2, inner)},
        "LoKr": {"lokr_w1": r(2, 2), "lokr_w2": r(out // 2, shape[1] // 2, *shape[2:])},
        "DoRA": {**low, "dora_scale": 1 + r(out, 1, *ones).abs()},
        "OFT": {"oft_blocks": r(2, out // 2, out // 2)},
        "difference": {"diff": r(*shape)},
        "bias": {"diff_b": r(out)},
        "LoRA with a bias": {**low, "diff_b": r(out)},
    }


def adapted_slider(model, kind):
    torch.manual_seed(3)
    names = [(path, name) for path, name in layer_names(model).items() if "attn" in path or "in_layers" in path]
    layers, tensors = {}, {}
    for path, name in names:
        module = model.model.get_submodule(path)
        parts = adapted_parts(weight_shape(module, name))[kind]
        if "diff_b" in parts and module.bias is None:
            continue
        layers[name] = Adapter(parts)
        tensors |= {f"{name}.{ending}": tensor for ending, tensor in parts.items()}
    return Slider(kind, layers), tensors
