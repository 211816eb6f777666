"""A tiny CLIP of ComfyUI's own classes with random weights."""

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import torch
from comfy.supported_models_base import ClipTarget

TINY_T5 = {
    "d_model": 4096,  # to which ComfyUI widens the other encodings of SD3
    "d_kv": 16,
    "d_ff": 48,
    "num_heads": 2,
    "num_layers": 2,
    "vocab_size": 1000,  # enough for plain words
    "model_type": "t5",
    "is_gated_act": True,
    "dense_act_fn": "gelu_pytorch_tanh",
}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
LAYER = "lora_te_text_model_encoder_layers_{}_mlp_fc1"  # (64, 32)


# ComfyUI's text encoders by family: tokenizer, model
ENCODERS = {
    "SD 1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "SD3": (comfy.text_encoders.sd3_clip.SD3Tokenizer, comfy.text_encoders.sd3_clip.SD3ClipModel),
    "Flux": (comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.flux.FluxClipModel),
}


def tiny_clip(family: str = "SD 1") -> comfy.sd.CLIP:
    cpu = torch.device("cpu")
    config = TINY if family == "SD 1" else {**TINY, "num_hidden_layers": 3}  # some read the last but one
    options = {"clip_l_model_config": config, "clip_g_model_config": config, "t5xxl_model_config": TINY_T5}
    options |= {"load_device": cpu, "offload_device": cpu, "dtype": torch.float32}
    target = ClipTarget(*ENCODERS[family])
    clip = comfy.sd.CLIP(target, model_options=options, disable_dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return clip
