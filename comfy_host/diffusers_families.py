"""diffusers' names of the layers of models of which ComfyUI's LoRA loader does not know them.

They are those of diffusers' conversion scripts, read from the side of ComfyUI's models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comfy.model_base import BaseModel

from .model_classes import model_classes

# From a path in ComfyUI's model to diffusers' names. Several names stand for consecutive rows of the weight, see
# `Family.rows`; names with "|" between them for the same rows. Where a name begins with "~", the two halves of the
# rows are the other way round in diffusers: scale and shift, or a gate and what it lets through.
_TOKEN_REFINER = r"context_embedder.token_refiner.refiner_blocks.\1."
_TIME_EMBEDS = ("time_text_embed", "time_embed", "time_guidance_embed")  # of HunyuanVideo, its 1.5, HunyuanImage
_HUNYUAN_VIDEO = {
    r"double_blocks\.(\d+)\.img_attn\.qkv": tuple(rf"transformer_blocks.\1.attn.to_{part}" for part in "qkv"),
    r"double_blocks\.(\d+)\.txt_attn\.qkv": tuple(rf"transformer_blocks.\1.attn.add_{part}_proj" for part in "qkv"),
    r"double_blocks\.(\d+)\.img_attn\.proj": (r"transformer_blocks.\1.attn.to_out.0",),
    r"double_blocks\.(\d+)\.txt_attn\.proj": (r"transformer_blocks.\1.attn.to_add_out",),
    r"double_blocks\.(\d+)\.img_attn\.norm\.(q|k)\w+_norm": (r"transformer_blocks.\1.attn.norm_\2",),
    r"double_blocks\.(\d+)\.txt_attn\.norm\.(q|k)\w+_norm": (r"transformer_blocks.\1.attn.norm_added_\2",),
    r"double_blocks\.(\d+)\.img_mod\.lin": (r"transformer_blocks.\1.norm1.linear",),
    r"double_blocks\.(\d+)\.txt_mod\.lin": (r"transformer_blocks.\1.norm1_context.linear",),
    r"double_blocks\.(\d+)\.img_mlp\.0": (r"transformer_blocks.\1.ff.net.0.proj",),
    r"double_blocks\.(\d+)\.img_mlp\.2": (r"transformer_blocks.\1.ff.net.2",),
    r"double_blocks\.(\d+)\.txt_mlp\.0": (r"transformer_blocks.\1.ff_context.net.0.proj",),
    r"double_blocks\.(\d+)\.txt_mlp\.2": (r"transformer_blocks.\1.ff_context.net.2",),
    r"single_blocks\.(\d+)\.linear1": (
        *(rf"single_transformer_blocks.\1.attn.to_{part}" for part in "qkv"),
        r"single_transformer_blocks.\1.proj_mlp",
    ),
    r"single_blocks\.(\d+)\.linear2": (r"single_transformer_blocks.\1.proj_out",),
    r"single_blocks\.(\d+)\.norm\.(q|k)\w+_norm": (r"single_transformer_blocks.\1.attn.norm_\2",),
    r"single_blocks\.(\d+)\.modulation\.lin": (r"single_transformer_blocks.\1.norm.linear",),
    r"img_in\.proj": ("x_embedder.proj",),
    r"time_in\.in_layer": ("|".join(f"{embed}.timestep_embedder.linear_1" for embed in _TIME_EMBEDS),),
    r"time_in\.out_layer": ("|".join(f"{embed}.timestep_embedder.linear_2" for embed in _TIME_EMBEDS),),
    r"vector_in\.in_layer": ("time_text_embed.text_embedder.linear_1",),
    r"vector_in\.out_layer": ("time_text_embed.text_embedder.linear_2",),
    r"guidance_in\.in_layer": ("|".join(f"{embed}.guidance_embedder.linear_1" for embed in _TIME_EMBEDS),),
    r"guidance_in\.out_layer": ("|".join(f"{embed}.guidance_embedder.linear_2" for embed in _TIME_EMBEDS),),
    r"byt5_in\.fc([123])": (r"context_embedder_2.linear_\1",),
    r"byt5_in\.layernorm": ("context_embedder_2.norm",),
    r"vision_in\.proj\.0": ("image_embedder.norm_in",),
    r"vision_in\.proj\.1": ("image_embedder.linear_1",),
    r"vision_in\.proj\.3": ("image_embedder.linear_2",),
    r"vision_in\.proj\.4": ("image_embedder.norm_out",),
    r"cond_type_embedding": ("cond_type_embed",),
    r"txt_in\.input_embedder": ("context_embedder.proj_in",),
    r"txt_in\.t_embedder\.in_layer": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    r"txt_in\.t_embedder\.out_layer": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    r"txt_in\.c_embedder\.in_layer": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    r"txt_in\.c_embedder\.out_layer": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn\.qkv": tuple(
        f"{_TOKEN_REFINER}attn.to_{part}" for part in "qkv"
    ),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn\.proj": (f"{_TOKEN_REFINER}attn.to_out.0",),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.0": (f"{_TOKEN_REFINER}ff.net.0.proj",),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.2": (f"{_TOKEN_REFINER}ff.net.2",),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.adaLN_modulation\.1": (f"{_TOKEN_REFINER}norm_out.linear",),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.norm([12])": (rf"{_TOKEN_REFINER}norm\2",),
    r"final_layer\.linear": ("proj_out",),
    r"final_layer\.adaLN_modulation\.1": ("~norm_out.linear",),
}
_WAN = {
    r"((?:vace_)?blocks\.\d+)\.self_attn\.([qkv])": (r"\1.attn1.to_\2",),
    r"((?:vace_)?blocks\.\d+)\.self_attn\.o": (r"\1.attn1.to_out.0",),
    r"((?:vace_)?blocks\.\d+)\.self_attn\.norm_([qk])": (r"\1.attn1.norm_\2",),
    r"((?:vace_)?blocks\.\d+)\.cross_attn\.([qkv])": (r"\1.attn2.to_\2",),
    r"((?:vace_)?blocks\.\d+)\.cross_attn\.o": (r"\1.attn2.to_out.0",),
    r"((?:vace_)?blocks\.\d+)\.cross_attn\.norm_([qk])": (r"\1.attn2.norm_\2",),
    r"((?:vace_)?blocks\.\d+)\.cross_attn\.([kv])_img": (r"\1.attn2.add_\2_proj",),
    r"((?:vace_)?blocks\.\d+)\.cross_attn\.norm_k_img": (r"\1.attn2.norm_added_k",),
    r"((?:vace_)?blocks\.\d+)\.ffn\.0": (r"\1.ffn.net.0.proj",),
    r"((?:vace_)?blocks\.\d+)\.ffn\.2": (r"\1.ffn.net.2",),
    r"((?:vace_)?blocks\.\d+)\.norm3": (r"\1.norm2",),
    r"(vace_blocks\.\d+)\.before_proj": (r"\1.proj_in",),
    r"(vace_blocks\.\d+)\.after_proj": (r"\1.proj_out",),
    r"time_embedding\.0": ("condition_embedder.time_embedder.linear_1",),
    r"time_embedding\.2": ("condition_embedder.time_embedder.linear_2",),
    r"time_projection\.1": ("condition_embedder.time_proj",),
    r"text_embedding\.0": ("condition_embedder.text_embedder.linear_1",),
    r"text_embedding\.2": ("condition_embedder.text_embedder.linear_2",),
    r"img_emb\.proj\.0": ("condition_embedder.image_embedder.norm1",),
    r"img_emb\.proj\.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    r"img_emb\.proj\.3": ("condition_embedder.image_embedder.ff.net.2",),
    r"img_emb\.proj\.4": ("condition_embedder.image_embedder.norm2",),
    r"head\.head": ("proj_out",),
}
_LTXV = {
    r"patchify_proj": ("proj_in",),
    r"adaln_single\.(.+)": (r"time_embed.\1",),
    r"transformer_blocks\.(\d+)\.(attn[12])\.([qk])_norm": (r"transformer_blocks.\1.\2.norm_\3",),
}
_COGVIDEOX = {
    r"blocks\.(\d+)\.([qkv])": (r"transformer_blocks.\1.attn1.to_\2",),
    r"blocks\.(\d+)\.norm_([qk])": (r"transformer_blocks.\1.attn1.norm_\2",),
    r"blocks\.(\d+)\.attn_out": (r"transformer_blocks.\1.attn1.to_out.0",),
    r"blocks\.(\d+)\.ff_proj": (r"transformer_blocks.\1.ff.net.0.proj",),
    r"blocks\.(\d+)\.ff_out": (r"transformer_blocks.\1.ff.net.2",),
    r"blocks\.(\d+)\.(norm[12]\.(?:linear|norm))": (r"transformer_blocks.\1.\2",),
    r"(time|ofs)_embedding_(linear_[12])": (r"\1_embedding.\2",),
    r"(patch_embed\..+|norm_final|norm_out\..+|proj_out)": (r"\1",),
}
_MOCHI = {
    r"blocks\.(\d+)\.attn\.qkv_x": tuple(rf"transformer_blocks.\1.attn1.to_{part}" for part in "qkv"),
    r"blocks\.(\d+)\.attn\.qkv_y": tuple(rf"transformer_blocks.\1.attn1.add_{part}_proj" for part in "qkv"),
    r"blocks\.(\d+)\.attn\.([qk])_norm_x": (r"transformer_blocks.\1.attn1.norm_\2",),
    r"blocks\.(\d+)\.attn\.([qk])_norm_y": (r"transformer_blocks.\1.attn1.norm_added_\2",),
    r"blocks\.(\d+)\.attn\.proj_x": (r"transformer_blocks.\1.attn1.to_out.0",),
    r"blocks\.(\d+)\.attn\.proj_y": (r"transformer_blocks.\1.attn1.to_add_out",),
    r"blocks\.(\d+)\.mod_x": (r"transformer_blocks.\1.norm1.linear",),
    # "linear_1" in the last block
    r"blocks\.(\d+)\.mod_y": (
        r"transformer_blocks.\1.norm1_context.linear|transformer_blocks.\1.norm1_context.linear_1",
    ),
    r"blocks\.(\d+)\.mlp_x\.w1": (r"~transformer_blocks.\1.ff.net.0.proj",),
    r"blocks\.(\d+)\.mlp_x\.w2": (r"transformer_blocks.\1.ff.net.2",),
    r"blocks\.(\d+)\.mlp_y\.w1": (r"~transformer_blocks.\1.ff_context.net.0.proj",),
    r"blocks\.(\d+)\.mlp_y\.w2": (r"transformer_blocks.\1.ff_context.net.2",),
    r"x_embedder\.proj": ("patch_embed.proj",),
    r"t_embedder\.mlp\.0": ("time_embed.timestep_embedder.linear_1",),
    r"t_embedder\.mlp\.2": ("time_embed.timestep_embedder.linear_2",),
    r"t5_y_embedder\.(.+)": (r"time_embed.pooler.\1",),
    r"t5_yproj": ("time_embed.caption_proj",),
    r"final_layer\.mod": ("~norm_out.linear",),
    r"final_layer\.linear": ("proj_out",),
}
_COSMOS = {
    r"blocks\.block(\d+)\.blocks\.0\.block\.attn\.to_([qkv])\.0": (r"transformer_blocks.\1.attn1.to_\2",),
    r"blocks\.block(\d+)\.blocks\.0\.block\.attn\.to_([qk])\.1": (r"transformer_blocks.\1.attn1.norm_\2",),
    r"blocks\.block(\d+)\.blocks\.0\.block\.attn\.to_out\.0": (r"transformer_blocks.\1.attn1.to_out.0",),
    r"blocks\.block(\d+)\.blocks\.1\.block\.attn\.to_([qkv])\.0": (r"transformer_blocks.\1.attn2.to_\2",),
    r"blocks\.block(\d+)\.blocks\.1\.block\.attn\.to_([qk])\.1": (r"transformer_blocks.\1.attn2.norm_\2",),
    r"blocks\.block(\d+)\.blocks\.1\.block\.attn\.to_out\.0": (r"transformer_blocks.\1.attn2.to_out.0",),
    r"blocks\.block(\d+)\.blocks\.2\.block\.layer1": (r"transformer_blocks.\1.ff.net.0.proj",),
    r"blocks\.block(\d+)\.blocks\.2\.block\.layer2": (r"transformer_blocks.\1.ff.net.2",),
    r"blocks\.block(\d+)\.blocks\.0\.adaLN_modulation\.([12])": (r"transformer_blocks.\1.norm1.linear_\2",),
    r"blocks\.block(\d+)\.blocks\.1\.adaLN_modulation\.([12])": (r"transformer_blocks.\1.norm2.linear_\2",),
    r"blocks\.block(\d+)\.blocks\.2\.adaLN_modulation\.([12])": (r"transformer_blocks.\1.norm3.linear_\2",),
    r"x_embedder\.proj\.1": ("patch_embed.proj",),
    r"t_embedder\.1\.(linear_[12])": (r"time_embed.t_embedder.\1",),
    r"affline_norm": ("time_embed.norm",),
    r"final_layer\.adaLN_modulation\.([12])": (r"norm_out.linear_\1",),
    r"final_layer\.linear": ("proj_out",),
}
_COSMOS_PREDICT_2 = {
    r"blocks\.(\d+)\.self_attn\.([qkv])_proj": (r"transformer_blocks.\1.attn1.to_\2",),
    r"blocks\.(\d+)\.self_attn\.([qk])_norm": (r"transformer_blocks.\1.attn1.norm_\2",),
    r"blocks\.(\d+)\.self_attn\.output_proj": (r"transformer_blocks.\1.attn1.to_out.0",),
    r"blocks\.(\d+)\.cross_attn\.([qkv])_proj": (r"transformer_blocks.\1.attn2.to_\2",),
    r"blocks\.(\d+)\.cross_attn\.([qk])_norm": (r"transformer_blocks.\1.attn2.norm_\2",),
    r"blocks\.(\d+)\.cross_attn\.output_proj": (r"transformer_blocks.\1.attn2.to_out.0",),
    r"blocks\.(\d+)\.mlp\.layer1": (r"transformer_blocks.\1.ff.net.0.proj",),
    r"blocks\.(\d+)\.mlp\.layer2": (r"transformer_blocks.\1.ff.net.2",),
    r"blocks\.(\d+)\.adaln_modulation_self_attn\.([12])": (r"transformer_blocks.\1.norm1.linear_\2",),
    r"blocks\.(\d+)\.adaln_modulation_cross_attn\.([12])": (r"transformer_blocks.\1.norm2.linear_\2",),
    r"blocks\.(\d+)\.adaln_modulation_mlp\.([12])": (r"transformer_blocks.\1.norm3.linear_\2",),
    r"x_embedder\.proj\.1": ("patch_embed.proj",),
    r"t_embedder\.1\.(linear_[12])": (r"time_embed.t_embedder.\1",),
    r"t_embedding_norm": ("time_embed.norm",),
    r"final_layer\.adaln_modulation\.([12])": (r"norm_out.linear_\1",),
    r"final_layer\.linear": ("proj_out",),
}
_LUMINA_2 = {
    r"(.+\d)\.attention\.qkv": tuple(rf"\1.attn.to_{part}" for part in "qkv"),
    r"(.+\d)\.attention\.out": (r"\1.attn.to_out.0",),
    r"(.+\d)\.attention\.([qk])_norm": (r"\1.attn.norm_\2",),
    r"(.+\d)\.feed_forward\.w([123])": (r"\1.feed_forward.linear_\2",),
    r"(context_refiner\.\d+)\.attention_norm1": (r"\1.norm1",),
    r"(.+\d)\.attention_norm1": (r"\1.norm1.norm",),
    r"(.+\d)\.attention_norm2": (r"\1.norm2",),
    r"(.+\d\.ffn_norm[12]|x_embedder)": (r"\1",),
    r"((?:layers|noise_refiner)\.\d+)\.adaLN_modulation\.1": (r"\1.norm1.linear",),
    r"cap_embedder\.([01])": (r"time_caption_embed.caption_embedder.\1",),
    r"t_embedder\.mlp\.0": ("time_caption_embed.timestep_embedder.linear_1",),
    r"t_embedder\.mlp\.2": ("time_caption_embed.timestep_embedder.linear_2",),
    r"final_layer\.adaLN_modulation\.1": ("norm_out.linear_1",),
    r"final_layer\.linear": ("norm_out.linear_2",),
}
_LTX_2 = {
    r"(audio_)?patchify_proj": (r"\1proj_in",),
    r"(audio_)?adaln_single\.(.+)": (r"\1time_embed.\2",),
    r"av_ca_(video|audio)_scale_shift_adaln_single\.(.+)": (r"av_cross_attn_\1_scale_shift.\2",),
    r"av_ca_a2v_gate_adaln_single\.(.+)": (r"av_cross_attn_video_a2v_gate.\1",),
    r"av_ca_v2a_gate_adaln_single\.(.+)": (r"av_cross_attn_audio_v2a_gate.\1",),
    r"transformer_blocks\.(\d+)\.(\w+)\.([qk])_norm": (r"transformer_blocks.\1.\2.norm_\3",),
}
_FLUX_2 = {
    r"((?:double|single)_stream_modulation\w*)\.lin": (r"\1.linear",),
    r"time_in\.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    r"time_in\.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    r"guidance_in\.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    r"guidance_in\.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
}
_LONGCAT_IMAGE = {
    r"time_in\.in_layer": ("time_embed.timestep_embedder.linear_1",),
    r"time_in\.out_layer": ("time_embed.timestep_embedder.linear_2",),
}
_CHROMA = {
    r"distilled_guidance_layer\.layers\.(\d+)\.in_layer": (r"distilled_guidance_layer.layers.\1.linear_1",),
    r"distilled_guidance_layer\.layers\.(\d+)\.out_layer": (r"distilled_guidance_layer.layers.\1.linear_2",),
}
_IDEOGRAM_4 = {
    r"layers\.(\d+)\.attention\.qkv": tuple(rf"layers.\1.attention.to_{part}" for part in "qkv"),
    r"layers\.(\d+)\.attention\.o": (r"layers.\1.attention.to_out.0",),
}
_ACE_STEP_1_5 = {
    r"decoder\.(layers\.\d+\.\w+_attn)\.([qkv])_proj": (r"\1.to_\2",),
    r"decoder\.(layers\.\d+\.\w+_attn)\.o_proj": (r"\1.to_out.0",),
    r"decoder\.(layers\.\d+\.\w+_attn)\.([qk])_norm": (r"\1.norm_\2",),
    r"decoder\.proj_(in|out)\.1": (r"proj_\1_conv",),
}
_STABLE_AUDIO = {
    r"transformer\.layers\.(\d+)\.self_attn\.to_qkv": tuple(
        rf"transformer_blocks.\1.attn1.to_{part}" for part in "qkv"
    ),
    r"transformer\.layers\.(\d+)\.self_attn\.to_out": (r"transformer_blocks.\1.attn1.to_out.0",),
    r"transformer\.layers\.(\d+)\.cross_attn\.to_q": (r"transformer_blocks.\1.attn2.to_q",),
    r"transformer\.layers\.(\d+)\.cross_attn\.to_kv": tuple(
        rf"transformer_blocks.\1.attn2.to_{part}" for part in "kv"
    ),
    r"transformer\.layers\.(\d+)\.cross_attn\.to_out": (r"transformer_blocks.\1.attn2.to_out.0",),
    r"transformer\.layers\.(\d+)\.ff\.ff\.(0\.proj|2)": (r"transformer_blocks.\1.ff.net.\2",),
    r"transformer\.project_(in|out)": (r"proj_\1",),
    r"to_cond_embed\.([02])": (r"cross_attention_proj.\1",),
    r"to_global_embed\.([02])": (r"global_proj.\1",),
    r"to_timestep_embed\.([02])": (r"timestep_proj.\1",),
}


def _as_columns(rows: int, columns: int, count: int) -> list[int]:
    """Give each part as many rows as the weight has columns, and all that are left to the last one."""
    return [columns] * (count - 1) + [rows - columns * (count - 1)]


def _equal(rows: int, columns: int, count: int) -> list[int]:
    """Give each part as many rows."""
    return [rows // count] * count


def _grouped_queries(rows: int, columns: int, count: int) -> list[int]:
    """Give the queries as many rows as the weight has columns; keys and values, which have fewer heads, the rest."""
    return [columns, *_equal(rows - columns, columns, count - 1)]


@dataclass(frozen=True)
class Family:
    """Models with the same names.

    names: see above. rows: from the rows and the columns of a weight and the number of its parts to the rows of each.
    """

    classes: tuple[type[BaseModel], ...]
    names: Mapping[str, tuple[str, ...]]
    rows: Callable[[int, int, int], list[int]] = _as_columns


FAMILIES = (
    Family(model_classes("HunyuanVideo", "HunyuanImage21"), _HUNYUAN_VIDEO),
    Family(model_classes("WAN21"), _WAN),
    Family(model_classes("LTXV"), _LTXV),
    Family(model_classes("LTXAV"), _LTX_2),
    Family(model_classes("CogVideoX"), _COGVIDEOX),
    Family(model_classes("GenmoMochi"), _MOCHI, _equal),
    Family(model_classes("CosmosVideo"), _COSMOS),
    Family(model_classes("CosmosPredict2", "Anima"), _COSMOS_PREDICT_2),
    Family(model_classes("Lumina2"), _LUMINA_2, _grouped_queries),
    Family(model_classes("Flux2"), _FLUX_2),
    Family(model_classes("LongCatImage"), _LONGCAT_IMAGE),
    Family(model_classes("Chroma"), _CHROMA),
    Family(model_classes("Ideogram4"), _IDEOGRAM_4, _equal),
    Family(model_classes("ACEStep15"), _ACE_STEP_1_5),
    Family(model_classes("StableAudio1"), _STABLE_AUDIO, _equal),
)
