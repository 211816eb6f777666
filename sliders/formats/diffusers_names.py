"""Layer names as diffusers and PEFT write them: "unet.", "transformer." or "base_model.model." and the path."""

from __future__ import annotations

import re

from .kohya_names import ENCODER, KOHYA_ENCODER, TRANSFORMER, UNET

PEFT = "base_model.model."
TRANSFORMER_PARTS = ("transformer_blocks.", "single_transformer_blocks.", "joint_transformer_blocks.")
# How names begin below "unet." or in a PEFT file, in the diffusers and in the original layout
_UNET_PARTS = (
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "input_blocks.",
    "middle_block.",
    "output_blocks.",
    "conv_in",
    "conv_out",
    "time_embedding.",
    "add_embedding.",
    "class_embedding.",
)
_UNET_TOPS = ("down_blocks_", "mid_block_", "up_blocks_", "conv_", "time_embedding_", "add_embedding_")
# ACE-Step: ComfyUI's loader knows these names only as PEFT writes them
_KEPT_PEFT = re.compile(r"layers\.\d+\.(self_attn|cross_attn|mlp)\.")
# USO's adapters for Flux, which stand at its attention processors
_USO_LAYER = re.compile(r"(single|double)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)")
_USO_LAYERS = {
    ("single", "qkv", ""): "linear1_qkv",
    ("single", "proj", ""): "linear2",
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "2"): "txt_attn.proj",
}
_CLIP_LAYER = re.compile(
    r"text_model[._]encoder[._]layers[._](\d+)[._](self_attn|mlp)[._](k_proj|q_proj|v_proj|out_proj|fc1|fc2)"
)
# Words with an underscore of their own in diffusers' names, so that the other underscores stand for dots
_WORD = re.compile(
    "single_transformer_blocks|(?:transformer|down|up|mid)_blocks?|time_emb_proj|(?:time|add|class)_embedding|"
    "conv_(?:shortcut|norm_out|in|out)|linear_[12]|proj_(?:in|out|mlp)|to_add_out|add_[qkv]_proj|norm1_context|"
    "norm_added_[qk]|norm_(?:out|q|k)|ff_context|to_(?:out|q|k|v)|time_text_embed|"
    "(?:timestep|guidance|text|x|context)_embedder"
)
_PLAIN_WORD = re.compile(
    r"\d+|(?:attention|resnet|downsampler|upsampler)s|attn[12]?|ff|net|proj|norm[123]?|conv[12]?|linear"
)


def from_diffusers(name: str, is_transformer: bool, encoder: str) -> str:
    """Return ComfyUI's name of a layer by its name in diffusers, in PEFT or in the trained model; itself if unknown.

    is_transformer: True if the file's PEFT names are those of a transformer of diffusers. encoder: which text encoder
    the PEFT names of a text encoder are of, such as "text_encoder_2".
    """
    if name.startswith("model.diffusion_model."):
        return name.removeprefix("model.")
    if uso := _USO_LAYER.fullmatch(name):
        blocks, number, layer, stream = uso.groups()
        place = _USO_LAYERS.get((blocks, layer, stream))
        return f"diffusion_model.{blocks}_blocks.{number}.{place}" if place else name
    rest = name.removeprefix("unet.").removeprefix(PEFT)
    plain_unet = name.startswith("unet.") and PEFT not in name and not rest.startswith(TRANSFORMER_PARTS)
    if rest.startswith(_UNET_PARTS) or plain_unet:
        return UNET + without_processor(rest).replace(".", "_")
    if PEFT not in name:
        return _encoder_name(name)
    if rest.startswith(("text_model.", "encoder.block.")):
        return _encoder_name(f"{encoder}.{rest}")
    if _KEPT_PEFT.match(rest):
        return name
    known = rest.startswith(("transformer.", "diffusion_model."))
    return rest if known else ("transformer." if is_transformer else "diffusion_model.") + rest


def without_processor(name: str) -> str:
    """Return a name without diffusers' attention processor, which also leaves out the 0 of `to_out.0`."""
    if ".processor." not in name:
        return name
    name = name.replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def to_diffusers(name: str) -> str | None:
    """Return diffusers' name of a diffusion model's layer by its name alone; None where that takes the model."""
    if name.startswith("transformer."):
        return name
    for prefix, component in ((UNET, "unet."), (TRANSFORMER, "transformer.")):
        rest = name.removeprefix(prefix)
        if rest != name and (prefix != UNET or rest.startswith(_UNET_TOPS)):
            words = dotted(rest)
            return component + words if words else None
    return None


def dotted(underscored: str) -> str | None:
    """Put the dots back into a diffusers name that was written with underscores; None if a word is not known.

    "down_blocks_0_resnets_1_conv1" -> "down_blocks.0.resnets.1.conv1"
    """
    words: list[str] = []
    rest = underscored
    while rest:
        match = _WORD.match(rest)
        word = match[0] if match else rest.partition("_")[0]
        if not (match or _PLAIN_WORD.fullmatch(word)):
            return None
        words.append(word)
        rest = rest[len(word) :]
        if rest and (not rest.startswith("_") or rest == "_"):
            return None  # words have one underscore between them, and none after the last
        rest = rest[1:]
    return ".".join(words)


def encoder_in_diffusers(name: str) -> str | None:
    """Return diffusers' name of a text encoder's layer; None if it is not known."""
    if ENCODER.fullmatch(name):
        return name
    match = KOHYA_ENCODER.fullmatch(name)
    layer = _CLIP_LAYER.fullmatch(match[2]) if match else None
    if match is None or layer is None:
        return None
    number = f"_{match[1]}" if match[1] not in ("", "1") else ""
    return f"text_encoder{number}.text_model.encoder.layers.{layer[1]}.{layer[2]}.{layer[3]}"


def _encoder_name(name: str) -> str:
    """diffusers' names of CLIP's layers are known to ComfyUI; those of T5 and of projections only underscored."""
    match = ENCODER.fullmatch(name)
    if match is None or match[2].startswith("text_model.encoder.layers."):
        return name
    return f"lora_te{match[1] or 1}_{match[2].replace('.', '_')}"
