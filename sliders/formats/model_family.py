"""The family of models that a file's layer names belong to, as far as names tell.

Families share names: where the ones in a file fit several, all of these are given. A name that another family has too
must not decide alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNKNOWN = "unknown"
_UNET = r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"
_OWN = r"(?:^| |model_|unet_)"  # how a name may begin before its own first word

# The first that is found in all names of a file, dots as underscores and a blank after each, is the family.
_FAMILIES = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        # UNets
        ("Stable Cascade", r"(down|up)_blocks_\d+_\d+_(attention|channelwise|kv_mapper|mapper)|lora_prior_"),
        ("SVD", rf"(?=.*{_UNET}).*(_time_stack_|_time_pos_embed_|_temporal_)"),
        ("SDXL", r"(down|up|input|output)_blocks_\S*transformer_blocks_[2-9]"),
        ("SDXL", r"(mid_block|middle_block)_\S*transformer_blocks_[1-9]"),
        ("SDXL", rf"(?=.*{_UNET})(?=.*(lora_te2|text_encoder_2)_text_model)"),
        ("SDXL or SD 2", r"(add|class)_embedding|label_emb"),  # unCLIP's SD 2 has one too
        ("SD 1 or 2", r"down_blocks_3_|up_blocks_3_|down_blocks_0_attentions|input_blocks_(1|2|10|11)_1"),
        ("a UNet (SD 1, SD 2 or SDXL)", _UNET),
        # Flux and what is built like it
        (
            "AuraFlow",
            rf"joint_transformer_blocks_|{_OWN}(double|single)_layers_\d+_|transformer_blocks_\d+_ff_linear_1",
        ),
        ("JoyImage", r"double_blocks_\d+_(attn_(img|txt)_attn|(img|txt)_mlp_net)_"),
        ("HunyuanVideo or HunyuanImage", r"individual_token_refiner|txt_in_c_embedder|byt5_in_|double_blocks_19_"),
        (
            "HunyuanVideo or HunyuanImage",
            r"double_blocks_\d+_((img|txt)_mlp_fc|(img|txt)_mod_linear)|_modulation_linear ",
        ),
        ("Chroma", r"distilled_guidance_layer|nerf_(blocks|image_embedder|final_layer)"),
        ("Flux 2", r"(double|single)_stream_modulation|single_blocks_4[0-7]_|to_qkv_mlp_proj"),
        (
            "Flux 2",
            r"single_transformer_blocks_\d+_attn_to_out |transformer_blocks_\d+_ff(_context)?_linear_(in|out)",
        ),
        (
            "Flux",
            r"(?=.*double_blocks_)(?=.*(vector_in|guidance_in)_)(?=.*img_in )|single_transformer_blocks_\d+_norm_",
        ),
        (
            "Flux, HunyuanVideo or HunyuanImage",
            r"double_blocks_\d+_(img|txt)_mod_lin|single_blocks_\d+_modulation_lin",
        ),
        ("Flux, Chroma, HunyuanVideo or HunyuanImage", r"double_blocks_([89]|1\d)_(img|txt)_"),
        (
            "Flux, Flux 2, Chroma, HunyuanVideo or HunyuanImage",
            r"double_blocks_\d+_(img|txt)_|single_blocks_\d+_linear",
        ),
        ("AuraFlow", r"single_transformer_blocks_\d+_(norm1_|ff_)"),
        ("Flux, Flux 2, Chroma or AuraFlow", r"single_transformer_blocks_"),
        # Other transformers, by what only one of them has
        ("SD3", r"joint_blocks_"),
        ("HiDream", r"(double|single)_stream_blocks_\d+_block_"),
        ("HiDream O1", rf"language_model_layers_\d+_|{_OWN}visual_(blocks|merger|patch_embed)_"),
        ("Boogu", r"(double|single)_stream_layers_\d+_"),
        ("OmniGen 2", rf"{_OWN}layers_\d+_(attn_to_|feed_forward_linear_|norm1_linear)"),
        ("OmniGen 2 or Boogu", r"(context|noise|ref_image)_refiner_\d+_(attn_to_|feed_forward_linear_|norm1_linear)"),
        ("Ideogram 4", r"layers_\d+_(attention_o|adaln_modulation) |llm_cond_proj"),
        (
            "Z-Image or Lumina 2",
            r"(context|noise)_refiner_\d+_|layers_\d+_(attention_(out|to_)|adaLN_mod)|cap_embedder_",
        ),
        ("Z-Image, Lumina 2 or Ideogram 4", r"layers_\d+_(attention_qkv|feed_forward_w\d) "),
        ("Ernie-Image", r"layers_\d+_(self_attention_to_|mlp_linear_fc2)"),
        (
            "ACE-Step 1.5",
            r"decoder_layers_\d+_(self_attn|cross_attn|mlp)|base_model_model_layers_\d+_(self|cross)_attn|"
            r"encoder_(lyric|timbre)_encoder_",
        ),
        ("ACE-Step", r"lyric_encoder_|genre_embedder|ff_(inverted|point)_conv|transformer_blocks_\d+_cross_attn_"),
        ("Krea 2", r"txtfusion_|text_fusion_|blocks_\d+_(attn_(w[qkvo]|gate|to_gate)|(mlp|ff)_(gate|up|down)) "),
        ("Lens", r"transformer_blocks_\d+_(attn_(img|txt)_qkv|(img|txt)_mlp_w\d) "),
        ("Qwen-Image", r"transformer_blocks_(1[2-9]|[2-5]\d)_(img|txt)_mlp_net"),
        ("Qwen-Image or MageFlow", r"transformer_blocks_\d+_(img|txt)_mlp_net"),
        ("Qwen-Image, MageFlow or Lens", r"transformer_blocks_\d+_(img|txt)_mod_"),
        ("Cosmos", r"blocks_block\d+_blocks_\d+_"),
        ("Anima", r"llm_adapter_"),
        (
            "Cosmos Predict 2 or Anima",
            r"blocks_\d+_(((self|cross)_attn_(q|k|v|output)_proj)|adaln_modulation_|mlp_layer)",
        ),
        ("Wan", rf"blocks_\d+_((self|cross)_attn_([qkvo]|[kv]_img)|ffn_\d) |{_OWN}vace_"),
        ("Kandinsky 5", r"(visual|text)_transformer_blocks_\d+_"),
        ("PixelDiT", r"(patch|pixel)_blocks_\d+_|pixel_embedder"),
        ("Mochi", r"blocks_\d+_(attn_(qkv|proj)_[xy]|mlp_[xy]_w\d|mod_[xy]) "),
        ("CogVideoX", rf"{_OWN}blocks_\d+_([qkv]|attn_out|ff_out|ff_proj|norm[12]_linear) "),
        ("Stable Audio", r"transformer_layers_\d+_(self_attn|cross_attn|ff)_|to_cond_embed_"),
        ("Hunyuan3D 2.1", rf"{_OWN}blocks_\d+_(attn[12]_to_[qkv]|moe_)"),
        ("Hunyuan-DiT", rf"{_OWN}blocks_\d+_(attn[12]_(Wqkv|kv_proj|q_proj)|default_modulation)"),
        ("Hunyuan-DiT or Hunyuan3D 2.1", rf"{_OWN}blocks_\d+_(attn[12]_out_proj|skip_linear)"),
        ("PixArt", rf"{_OWN}blocks_\d+_(cross_attn_(kv_linear|q_linear|proj)|attn_(qkv|proj)) |csize_embedder"),
        ("MiniMax H3", r"(video|audio)_patch_proj|blocks_\d+_(attn_(qkv|out)_proj|adaln_proj_linear) "),
        ("PixArt, Hunyuan-DiT, Hunyuan3D 2.1 or MiniMax H3", rf"{_OWN}blocks_\d+_mlp_fc\d "),
        ("LTX", r"patchify_proj|transformer_blocks_\d+_(audio_|video_)"),
        ("PixArt, LTX or SD3", r"transformer_blocks_\d+_attn[12]_"),
        (
            "Flux, Flux 2, Chroma, SD3, AuraFlow, Qwen-Image, Krea 2, Lens, MageFlow or ACE-Step",
            r"transformer_blocks_\d+_attn_",
        ),
        # Text encoders alone
        ("SDXL or SD3", r"(lora_te2|text_encoder_2)_text_model"),
    )
)


def family_of(names: Iterable[str]) -> str:
    """Return the family of models that the layer names of a file belong to; `UNKNOWN` if they tell none.

    Several that have such names are given as "one, another or a third".
    """
    text = "".join(name.replace(".", "_") + " " for name in names)
    return next((family for family, pattern in _FAMILIES if pattern.search(text)), UNKNOWN)


def candidates(family: str) -> tuple[str, ...]:
    """Split what `family_of` returned into single families."""
    return tuple(re.split(r", | or ", family))
