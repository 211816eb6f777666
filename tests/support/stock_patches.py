"""Models with the weight patches of ComfyUI's own LoRA loader."""

import comfy.sd
from comfy.model_patcher import ModelPatcher


def patched_by_stock(model: ModelPatcher, *files) -> ModelPatcher:
    """Returns a clone of the model with the patches that ComfyUI's LoRA loader makes of (tensors, strength)."""
    for tensors, strength in files:
        model, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    return model
