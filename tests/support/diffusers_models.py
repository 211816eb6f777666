"""The weights of diffusers' models by name, with their shapes, at the sizes of the tiny families.

Taken from the state dicts of diffusers 0.42.1's classes, made with these sizes. The feed-forward networks of Mochi,
whose width diffusers works out otherwise, have that of the tiny model.
"""

from __future__ import annotations

_COGVIDEOX = """
patch_embed.proj 64x16x2x2
patch_embed.text_proj 64x16
time_embedding.linear_1 32x64
time_embedding.linear_2 32x32
transformer_blocks.0.norm1.linear 384x32
transformer_blocks.0.norm1.norm 64
transformer_blocks.0.attn1.norm_q 64
transformer_blocks.0.attn1.norm_k 64
transformer_blocks.0.attn1.to_q 64x64
transformer_blocks.0.attn1.to_k 64x64
transformer_blocks.0.attn1.to_v 64x64
transformer_blocks.0.attn1.to_out.0 64x64
transformer_blocks.0.norm2.linear 384x32
transformer_blocks.0.norm2.norm 64
transformer_blocks.0.ff.net.0.proj 256x64
transformer_blocks.0.ff.net.2 64x256
norm_final 64
norm_out.linear 128x32
norm_out.norm 64
proj_out 64x64
"""
_MOCHI = """
patch_embed.proj 64x12x2x2
time_embed.timestep_embedder.linear_1 64x256
time_embed.timestep_embedder.linear_2 64x64
time_embed.pooler.to_kv 32x16
time_embed.pooler.to_q 16x16
time_embed.pooler.to_out 64x16
time_embed.caption_proj 32x16
transformer_blocks.0.norm1.linear 256x64
transformer_blocks.0.norm1_context.linear 128x64
transformer_blocks.0.attn1.norm_q 32
transformer_blocks.0.attn1.norm_k 32
transformer_blocks.0.attn1.norm_added_q 32
transformer_blocks.0.attn1.norm_added_k 32
transformer_blocks.0.attn1.to_q 64x64
transformer_blocks.0.attn1.to_k 64x64
transformer_blocks.0.attn1.to_v 64x64
transformer_blocks.0.attn1.add_k_proj 64x32
transformer_blocks.0.attn1.add_v_proj 64x32
transformer_blocks.0.attn1.add_q_proj 64x32
transformer_blocks.0.attn1.to_out.0 64x64
transformer_blocks.0.attn1.to_add_out 32x64
transformer_blocks.0.ff.net.0.proj 16384x64
transformer_blocks.0.ff.net.2 64x8192
transformer_blocks.0.ff_context.net.0.proj 512x32
transformer_blocks.0.ff_context.net.2 32x256
transformer_blocks.1.norm1.linear 256x64
transformer_blocks.1.norm1_context.linear_1 32x64
transformer_blocks.1.attn1.norm_q 32
transformer_blocks.1.attn1.norm_k 32
transformer_blocks.1.attn1.norm_added_q 32
transformer_blocks.1.attn1.norm_added_k 32
transformer_blocks.1.attn1.to_q 64x64
transformer_blocks.1.attn1.to_k 64x64
transformer_blocks.1.attn1.to_v 64x64
transformer_blocks.1.attn1.add_k_proj 64x32
transformer_blocks.1.attn1.add_v_proj 64x32
transformer_blocks.1.attn1.add_q_proj 64x32
transformer_blocks.1.attn1.to_out.0 64x64
transformer_blocks.1.ff.net.0.proj 16384x64
transformer_blocks.1.ff.net.2 64x8192
norm_out.linear 128x64
proj_out 48x64
"""
_COSMOS = """
patch_embed.proj 64x68
time_embed.t_embedder.linear_1 64x64
time_embed.t_embedder.linear_2 192x64
time_embed.norm 64
transformer_blocks.0.norm1.linear_1 8x64
transformer_blocks.0.norm1.linear_2 192x8
transformer_blocks.0.attn1.norm_q 32
transformer_blocks.0.attn1.norm_k 32
transformer_blocks.0.attn1.to_q 64x64
transformer_blocks.0.attn1.to_k 64x64
transformer_blocks.0.attn1.to_v 64x64
transformer_blocks.0.attn1.to_out.0 64x64
transformer_blocks.0.norm2.linear_1 8x64
transformer_blocks.0.norm2.linear_2 192x8
transformer_blocks.0.attn2.norm_q 32
transformer_blocks.0.attn2.norm_k 32
transformer_blocks.0.attn2.to_q 64x64
transformer_blocks.0.attn2.to_k 64x16
transformer_blocks.0.attn2.to_v 64x16
transformer_blocks.0.attn2.to_out.0 64x64
transformer_blocks.0.norm3.linear_1 8x64
transformer_blocks.0.norm3.linear_2 192x8
transformer_blocks.0.ff.net.0.proj 256x64
transformer_blocks.0.ff.net.2 64x256
norm_out.linear_1 8x64
norm_out.linear_2 128x8
proj_out 64x64
"""
_LUMINA_2 = """
x_embedder 64x64
time_caption_embed.timestep_embedder.linear_1 64x256
time_caption_embed.timestep_embedder.linear_2 64x64
time_caption_embed.caption_embedder.0 16
time_caption_embed.caption_embedder.1 64x16
noise_refiner.0.attn.norm_q 32
noise_refiner.0.attn.norm_k 32
noise_refiner.0.attn.to_q 64x64
noise_refiner.0.attn.to_k 32x64
noise_refiner.0.attn.to_v 32x64
noise_refiner.0.attn.to_out.0 64x64
noise_refiner.0.feed_forward.linear_1 256x64
noise_refiner.0.feed_forward.linear_2 64x256
noise_refiner.0.feed_forward.linear_3 256x64
noise_refiner.0.norm1.linear 256x64
noise_refiner.0.norm1.norm 64
noise_refiner.0.ffn_norm1 64
noise_refiner.0.norm2 64
noise_refiner.0.ffn_norm2 64
context_refiner.0.attn.norm_q 32
context_refiner.0.attn.norm_k 32
context_refiner.0.attn.to_q 64x64
context_refiner.0.attn.to_k 32x64
context_refiner.0.attn.to_v 32x64
context_refiner.0.attn.to_out.0 64x64
context_refiner.0.feed_forward.linear_1 256x64
context_refiner.0.feed_forward.linear_2 64x256
context_refiner.0.feed_forward.linear_3 256x64
context_refiner.0.norm1 64
context_refiner.0.ffn_norm1 64
context_refiner.0.norm2 64
context_refiner.0.ffn_norm2 64
layers.0.attn.norm_q 32
layers.0.attn.norm_k 32
layers.0.attn.to_q 64x64
layers.0.attn.to_k 32x64
layers.0.attn.to_v 32x64
layers.0.attn.to_out.0 64x64
layers.0.feed_forward.linear_1 256x64
layers.0.feed_forward.linear_2 64x256
layers.0.feed_forward.linear_3 256x64
layers.0.norm1.linear 256x64
layers.0.norm1.norm 64
layers.0.ffn_norm1 64
layers.0.norm2 64
layers.0.ffn_norm2 64
norm_out.linear_1 64x64
norm_out.linear_2 64x64
"""


def _read(table: str) -> dict[str, tuple[int, ...]]:
    pairs = (line.split() for line in table.split("\n") if line)
    return {name: tuple(map(int, shape.split("x"))) for name, shape in pairs}


# Both generations of Cosmos are one class of diffusers
DIFFUSERS: dict[str, dict[str, tuple[int, ...]]] = {
    "CogVideoX": _read(_COGVIDEOX),
    "Mochi": _read(_MOCHI),
    "Cosmos": _read(_COSMOS),
    "Cosmos Predict 2": _read(_COSMOS),
    "Lumina 2": _read(_LUMINA_2),
}
