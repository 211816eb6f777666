"""A tiny CLIP of the host's own classes with random weights."""

import comfy.sd
import comfy.sd1_clip
import torch
from comfy.supported_models_base import ClipTarget

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
LAYER = "lora_te_text_model_encoder_layers_{}_mlp_fc1"  # (64, 32)


def tiny_clip() -> comfy.sd.CLIP:
    target = ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    cpu = torch.device("cpu")
    options = {"clip_l_model_config": TINY, "load_device": cpu, "offload_device": cpu, "dtype": torch.float32}
    clip = comfy.sd.CLIP(target, model_options=options, disable_dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return clip
