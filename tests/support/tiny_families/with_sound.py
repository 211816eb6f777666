"""Models of videos together with their sound, whose latents ComfyUI nests."""

import comfy.supported_models as host
from concept_sliders.tests.support.tiny_families.family import TEXT, Family
from concept_sliders.tests.support.tiny_families.videos import LTXV

LTXAV = {
    **LTXV,
    "image_model": "ltxav",
    "audio_cross_attention_dim": 32,
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
VIDEO, SOUND = (128, 2, 4, 4), (8, 6, 16)

WITH_SOUND: dict[str, Family] = {
    "LTX 2": Family(host.LTXAV, LTXAV, VIDEO, sound=SOUND),
    "LTX 2.3": Family(
        host.LTXAV,
        {
            **LTXAV,
            "caption_proj_before_connector": True,
            "caption_projection_first_linear": True,
            "cross_attention_adaln": True,
            "apply_gated_attention": True,
            "connector_apply_gated_attention": True,
            "connector_attention_head_dim": 32,
            "audio_connector_attention_head_dim": 16,
        },
        VIDEO,
        extra={"unprocessed_ltxav_embeds": True},
        sound=SOUND,
    ),
    "MiniMax H3": Family(
        host.MiniMaxH3,
        {
            "image_model": "minimax_h3",
            "hidden_size": 64,
            "num_layers": 1,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "ffn_hidden_size": 64,
            "text_dim": TEXT,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 32,
            "time_embed_dim": 32,
            "rope_inv_freq_len": 4,
        },
        (24, 2, 4, 4),
        sound=(32, 2, 5),
    ),
}
