"""Models for videos and for sound."""

import comfy.ops
import comfy.supported_models as host
import torch
from comfy.ldm.ace.lyric_encoder import ConformerEncoder
from comfy.ldm.audio.embedders import NumberConditioner
from comfy.ldm.hunyuan_video.model import ByT5Mapper
from concept_sliders.tests.support.tiny_families.family import CPU, POOLED, TEXT, TOKENS, Family, all_tokens

HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": TEXT,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
COSMOS = {
    "image_model": "cosmos",
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 16,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 1,
    "num_heads": 2,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
}
COSMOS_2 = {**COSMOS, "image_model": "cosmos_predict2", "pos_emb_learnable": True}
COGVIDEOX = {
    "image_model": "cogvideox",
    "num_attention_heads": 1,
    "attention_head_dim": 64,
    "time_embed_dim": 32,
    "num_layers": 1,
    "text_embed_dim": TEXT,
    "max_text_seq_length": TOKENS,
    "use_rotary_positional_embeddings": True,
}
LTXV = {
    "image_model": "ltxv",
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": TEXT,
    "num_layers": 1,
}
KANDINSKY = {
    "image_model": "kandinsky5",
    "model_dim": 64,
    "time_dim": 32,
    "ff_dim": 128,
    "in_text_dim": TEXT,
    "in_text_dim2": 8,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (8, 12, 12),
}
VIDEO = (16, 2, 8, 8)


def small_lyrics() -> ConformerEncoder:
    """ACE-Step's encoder of lyrics has one size only, and that is 80 million weights."""
    return ConformerEncoder(
        input_size=32,
        output_size=32,
        attention_heads=2,
        linear_units=64,
        num_blocks=1,
        static_chunk_size=0,
        dtype=torch.float32,
        device=CPU,
        operations=comfy.ops.manual_cast,
    )


def small_byt5() -> ByT5Mapper:
    """HunyuanVideo's reader of letters within images: 7 million weights in its one size."""
    return ByT5Mapper(1472, 16, 16, 64, dtype=torch.float32, device=CPU, operations=comfy.ops.manual_cast)


def seconds(name: str) -> dict[str, torch.Tensor]:
    """The part of a checkpoint that encodes where a piece of sound starts or ends."""
    state = NumberConditioner(768, min_val=0, max_val=512).state_dict()
    return {f"conditioner.conditioners.{name}.{key}": torch.full_like(value, 0.1) for key, value in state.items()}


VIDEOS: dict[str, Family] = {
    "Kandinsky 5 video": Family(host.Kandinsky5, {**KANDINSKY, "visual_embed_dim": 132}, VIDEO, extra=POOLED),
    "Cosmos": Family(
        host.CosmosT2V,
        {
            **COSMOS,
            "block_config": "FA-CA-MLP",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        VIDEO,
    ),
    "Cosmos Predict 2": Family(host.CosmosT2IPredict2, COSMOS_2, VIDEO),
    "HunyuanVideo": Family(
        host.HunyuanVideo,
        HUNYUAN,
        VIDEO,
        extra={**POOLED, "guidance": 6.0},
        guidance=1.0,
    ),
    "HunyuanVideo 1.5": Family(
        host.HunyuanVideo15,
        {
            **HUNYUAN,
            "in_channels": 65,  # of the latent, of an image, and a mask
            "out_channels": 32,
            "vec_in_dim": None,
            "patch_size": [1, 1, 1],
            "guidance_embed": False,
            "byt5": True,
            "use_cond_type_embedding": True,
            "vision_in_dim": 16,
        },
        (32, 2, 4, 4),
        extra={**POOLED, "conditioning_byt5small": (1, 5, 1472)},
        parts={"byt5_in": small_byt5},
    ),
    "LTXV": Family(
        host.LTXV,
        LTXV,
        (128, 2, 4, 4),
        extra={"attention_mask": all_tokens},
    ),
    "Mochi": Family(
        host.GenmoMochi,
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 64,
            "hidden_size_y": 32,
            "mlp_ratio_x": 192.0,  # of this times the size above ComfyUI has one value only
            "mlp_ratio_y": 2.0,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "learn_sigma": False,
            "posenc_preserve_area": True,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": TEXT,
            "t5_token_length": TOKENS,
        },
        (12, 2, 8, 8),
        extra={"attention_mask": all_tokens},
    ),
    "CogVideoX": Family(
        host.CogVideoX_T2V,
        COGVIDEOX,
        VIDEO,
    ),
    "ACE-Step": Family(
        host.ACEStep,
        {
            "audio_model": "ace",
            "attention_head_dim": 32,
            "inner_dim": 64,
            "num_attention_heads": 2,
            "num_layers": 1,
            "mlp_ratio": 2.0,
            "text_embedding_dim": TEXT,
            "lyric_encoder_vocab_size": 16,
            "lyric_hidden_size": 32,
            "max_position": 256,
        },
        (8, 16, 8),
        extra={"conditioning_lyrics": torch.arange(4)[None]},
        parts={"lyric_encoder": small_lyrics},
    ),
    "ACE-Step 1.5": Family(
        host.ACEStep15,
        {
            "audio_model": "ace1.5",
            "hidden_size": 64,
            "text_hidden_dim": TEXT,
            "num_dit_layers": 1,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 32,
            "intermediate_size": 64,
            "fsq_dim": 64,
            "encoder_hidden_size": 64,
            "encoder_intermediate_size": 64,
            "encoder_num_heads": 2,
        },
        (64, 10),
        extra={"conditioning_lyrics": (1, 4, TEXT)},
    ),
    "Stable Audio": Family(
        host.StableAudio,
        {
            "audio_model": "dit1.0",
            "embed_dim": 64,
            "depth": 1,
            "num_heads": 2,
            "cond_token_dim": 768,
            "project_cond_tokens": True,
        },
        (64, 16),
        (TOKENS, 768),
        state={**seconds("seconds_start"), **seconds("seconds_total")},
    ),
}
