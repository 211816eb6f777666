"""Layers of every kind of change that a file can hold, and what ComfyUI's LoRA loader makes of them."""

import comfy.lora
import torch
from concept_sliders.comfy_host.weight_adapters import tensors_by_key


def random(*size):
    return 0.3 * torch.randn(*size)


def low_rank_parts(out, inner, kernel=()):
    ones = (1,) * len(kernel)
    return {"lora_up.weight": random(out, 4, *ones), "lora_down.weight": random(4, inner, *kernel)}


def parts_of(kind: str, out: int, inner: int) -> dict[str, torch.Tensor]:
    alpha = {"alpha": torch.tensor(2.0)}
    hada = {f"hada_w{i}_{ab}": random(*((out, 4) if ab == "a" else (4, inner))) for i in (1, 2) for ab in "ab"}
    return {
        "LoRA": {**low_rank_parts(out, inner), **alpha},
        "DoRA": {**low_rank_parts(out, inner), **alpha, "dora_scale": 1 + random(out, 1).abs()},
        "LoRA with a bias": {**low_rank_parts(out, inner), **alpha, "diff_b": random(out)},
        "LoHa": {**hada, **alpha},
        "LoHa with DoRA": {**hada, **alpha, "dora_scale": 1 + random(1, inner).abs()},
        "LoKr": {
            "lokr_w1": random(4, 4),
            "lokr_w2_a": random(out // 4, 3),
            "lokr_w2_b": random(3, inner // 4),
            **alpha,
        },
        "LoKr, whole": {"lokr_w1": random(2, 2), "lokr_w2": random(out // 2, inner // 2), **alpha},
        "OFT": {"oft_blocks": random(4, out // 4, out // 4), **alpha},
        "BOFT": {"oft_blocks": random(2, out // 4, 4, 4)},
        "GLoRA": {
            "a1.weight": random(inner, 2),
            "a2.weight": random(2, inner),
            "b1.weight": random(out, 2),
            "b2.weight": random(2, inner),
            **alpha,
        },
        "difference": {"diff": random(out, inner), "diff_b": random(out)},
        "bias": {"diff_b": random(out)},
    }[kind]


KINDS = (
    "LoRA",
    "DoRA",
    "LoRA with a bias",
    "LoHa",
    "LoHa with DoRA",
    "LoKr",
    "LoKr, whole",
    "OFT",
    "BOFT",
    "GLoRA",
    "difference",
    "bias",
)
NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"


def unet_keys(model):
    return comfy.lora.model_lora_keys_unet(model.model, {})


def change_by_comfyui(slider, model, key_map, strength=1.0):
    """What ComfyUI's loader makes of a slider's layers, by the key of the weight: new minus old, in float32."""
    state = model.model.state_dict()
    found = {}
    for name, change in slider.layers.items():
        for key, value in comfy.lora.load_lora(tensors_by_key(name, change), {name: key_map[name]}).items():
            key, offset, function = (*(key if isinstance(key, tuple) else (key,)), None, None)[:3]
            own = state[key].float()
            patch = [(strength, value, 1.0, offset, function)]
            found[key] = found.get(key, 0) + comfy.lora.calculate_weight(patch, own.clone(), key) - own
    return found
