"""Transformers for images whose text encoder is a language model."""

import comfy.ops
import comfy.supported_models as host
import torch
from comfy.ldm.anima.model import LLMAdapter
from concept_sliders.tests.support.tiny_families.family import CPU, POOLED, TEXT, TOKENS, Family, all_tokens
from concept_sliders.tests.support.tiny_families.videos import COSMOS_2, KANDINSKY

LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "cap_feat_dim": TEXT,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
}
Z_IMAGE = {
    **LUMINA,
    "dim": 256,  # its modulation has this width at least
    "n_heads": 8,
    "n_kv_heads": 8,
    "ffn_dim_multiplier": 0.5,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 8,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 12, 12),
}
OMNIGEN = {
    "image_model": "omnigen2",
    "hidden_size": 64,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 32,
    "axes_dim_rope": (8, 12, 12),
    "axes_lens": (64, 64, 64),
    "timestep_scale": 1000.0,
}


def small_adapter() -> LLMAdapter:
    """Anima's adapter has one size only, and that is 130 million weights."""
    return LLMAdapter(
        TEXT, TEXT, 32, num_layers=1, num_heads=2, device=CPU, dtype=torch.float32, operations=comfy.ops.manual_cast
    )


def token_ids(tokens: int, generator: torch.Generator) -> torch.Tensor:
    """(1, tokens) of words, and HiDream O1's own token that the image follows."""
    words = torch.randint(5, 1000, (1, tokens - 1), generator=generator)
    return torch.cat([words, torch.tensor([[151673]])], dim=1)


LATER: dict[str, Family] = {
    "Lumina 2": Family(host.Lumina2, LUMINA, (16, 8, 8), extra={"attention_mask": all_tokens}),
    "Z-Image": Family(host.ZImage, Z_IMAGE, (16, 8, 8)),
    "Qwen-Image": Family(host.QwenImage, QWEN, (16, 1, 8, 8)),
    "HiDream": Family(
        host.HiDream,
        {
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": [TEXT, TEXT],
            "text_emb_dim": 8,
            "axes_dims_rope": [16, 8, 8],
            "max_resolution": [32, 32],
            "llama_layers": [0, 1],
        },
        (16, 8, 8),
        extra={**POOLED, "conditioning_llama3": (1, 2, TOKENS, TEXT)},
    ),
    "HiDream O1": Family(
        host.HiDreamO1,
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 32,
                "rope_dims": [8, 4, 4],
            },
            "vision_config_overrides": {
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 64,
                "depth": 1,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": (0,),
            },
        },
        (3, 64, 64),
        extra={"text_input_ids": token_ids},
    ),
    "OmniGen 2": Family(
        host.Omnigen2, {**OMNIGEN, "text_feat_dim": TEXT}, (16, 8, 8), extra={"attention_mask": all_tokens}
    ),
    "Boogu": Family(
        host.Boogu,
        {**OMNIGEN, "image_model": "boogu", "num_double_stream_layers": 1, "instruction_feat_dim": TEXT},
        (16, 8, 8),
        extra={"attention_mask": all_tokens},
    ),
    "Krea 2": Family(
        host.Krea2,
        {
            "image_model": "krea2",
            "features": 64,
            "tdim": 32,
            "txtdim": 32,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 1,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        (16, 1, 8, 8),
        (TOKENS, 64),
    ),
    "Lens": Family(
        host.Lens,
        {
            "image_model": "lens",
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "enc_hidden_dim": TEXT,
            "axes_dims_rope": (8, 12, 12),
            "selected_layer_index": (0, 1),
        },
        (128, 4, 4),
        (TOKENS, 2 * TEXT),
        extra={"attention_mask": all_tokens},
    ),
    "Ernie-Image": Family(
        host.ErnieImage,
        {
            "image_model": "ernie",
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 128,
            "text_in_dim": TEXT,
            "rope_axes_dim": (8, 12, 12),
        },
        (128, 4, 4),
    ),
    "Ideogram 4": Family(
        host.Ideogram4,
        {
            "image_model": "ideogram4",
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "intermediate_size": 128,
            "adaln_dim": 32,
            "llm_features_dim": TEXT,
            "mrope_section": [8, 4, 4],
        },
        (128, 4, 4),
    ),
    "MageFlow": Family(
        host.MageFlow,
        {
            "image_model": "mage_flow",
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": TEXT,
            "axes_dims_rope": (8, 12, 12),
        },
        (128, 4, 4),
    ),
    "JoyImage": Family(
        host.JoyImage,
        {
            "image_model": "joyimage",
            "hidden_size": 64,
            "num_attention_heads": 2,
            "text_dim": TEXT,
            "num_layers": 1,
            "rope_dim_list": [8, 12, 12],
        },
        (16, 1, 8, 8),
    ),
    "Anima": Family(
        host.Anima,
        {**COSMOS_2, "image_model": "anima"},
        (16, 1, 8, 8),
        extra={"t5xxl_ids": torch.arange(5), "t5xxl_weights": torch.ones(5)},
        parts={"llm_adapter": small_adapter},
    ),
    "Kandinsky 5 image": Family(
        host.Kandinsky5Image, {**KANDINSKY, "visual_embed_dim": 64}, (16, 8, 8), extra=POOLED
    ),
    "PixelDiT": Family(
        host.PixelDiTT2I,
        {
            "image_model": "pixeldit_t2i",
            "hidden_size": 64,
            "num_groups": 2,
            "pixel_hidden_size": 4,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 1,
            "pixel_depth": 1,
            "patch_size": 4,
            "txt_embed_dim": TEXT,
            "txt_max_length": TOKENS,
        },
        (3, 12, 12),
    ),
}
