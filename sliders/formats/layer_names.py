"""The names of layers in slider files, and what the stock LoRA loader calls the same layers.

Pure functions on names. A model is not needed: a file's names taken together tell what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..slider import TEXT_ENCODER_PREFIXES

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
_TRANSFORMER_PARTS = ("transformer_blocks.", "single_transformer_blocks.", "joint_transformer_blocks.")
_PEFT = "base_model.model."
_FLUX_PARTS = _DOUBLE, _SINGLE = ("transformer_blocks_", "single_transformer_blocks_")
_FLUX_OTHERS = ("norm_out_linear", "proj_out", "x_embedder", "context_embedder", "time_text_embed_")
_FLUX_BLOCKS = 19
# ACE-Step: the stock loader knows these names as PEFT writes them, and no other way
_KEPT_PEFT = re.compile(r"layers\.\d+\.(self_attn|cross_attn|mlp)\.")
_CLIP_LAYER = re.compile(
    r"text_model[._]encoder[._]layers[._](\d+)[._](self_attn|mlp)[._](k_proj|q_proj|v_proj|out_proj|fc1|fc2)"
)
_ENCODER = re.compile(r"text_encoder(?:_(\d))?\.(.+)")
_KOHYA_ENCODER = re.compile(r"lora_te(\d?)_(.+)")
_USO_LAYER = re.compile(r"(single|double)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)")
_USO_PLACES = {
    ("single", "qkv", ""): "linear1_qkv",
    ("single", "proj", ""): "linear2",
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "2"): "txt_attn.proj",
}

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


def comfyui_names(names: Iterable[str], encoder: str = "text_encoder") -> dict[str, str]:
    """For each layer name of one file, the name to know it by: its own where the stock loader knows that.

    encoder: which text encoder a PEFT file for a text encoder is of, "text_encoder", "text_encoder_2", ...
    Several names may get the same one; whether that can be is the caller's question.
    """
    names = tuple(names)
    peft = tuple(name.removeprefix("unet.").removeprefix(_PEFT) for name in names if _PEFT in name)
    transformer = any(name.startswith(_TRANSFORMER_PARTS) for name in peft)
    flux = _is_flux_of_the_public_code(names)
    return {name: _host_name(name, transformer, flux, encoder) for name in names}


def _host_name(name: str, transformer: bool, flux: bool, encoder: str) -> str:
    kohya = name.removeprefix("lora_unet_")
    if flux and kohya != name and kohya.startswith((*_FLUX_PARTS, *_FLUX_OTHERS)):
        return f"lora_transformer_{kohya}"
    if name.startswith("model.diffusion_model."):
        return name.removeprefix("model.")
    if uso := _USO_LAYER.fullmatch(name):
        blocks, number, layer, stream = uso.groups()
        place = _USO_PLACES.get((blocks, layer, stream))
        return f"diffusion_model.{blocks}_blocks.{number}.{place}" if place else name
    if name.startswith("lora_unet__"):  # Wan Fun
        return "lora_unet_" + name.removeprefix("lora_unet__")
    rest = name.removeprefix("unet.").removeprefix(_PEFT)
    plain_unet = name.startswith("unet.") and _PEFT not in name and not rest.startswith(_TRANSFORMER_PARTS)
    if rest.startswith(_UNET_PARTS) or plain_unet:
        return "lora_unet_" + _without_processor(rest).replace(".", "_")
    if _PEFT in name:
        if rest.startswith(("text_model.", "encoder.block.")):
            return _encoder_name(f"{encoder}.{rest}")
        if _KEPT_PEFT.match(rest):
            return name
        known = rest.startswith(("transformer.", "diffusion_model."))
        return rest if known else ("transformer." if transformer else "diffusion_model.") + rest
    return _encoder_name(name)


def _without_processor(rest: str) -> str:
    """diffusers' attention processors name their layers apart, and leave out the 0 of `to_out.0`."""
    if ".processor." not in rest:
        return rest
    rest = rest.replace(".processor.", ".")
    return f"{rest}.0" if rest.endswith(".to_out") else rest


def _encoder_name(name: str) -> str:
    """diffusers' names of CLIP's layers are known; those of T5 and of projections are only known underscored."""
    match = _ENCODER.fullmatch(name)
    if match is None or match[2].startswith("text_model.encoder.layers."):
        return name
    return f"lora_te{match[1] or 1}_{match[2].replace('.', '_')}"


def _is_flux_of_the_public_code(names: tuple[str, ...]) -> bool:
    """Whether `lora_unet_transformer_blocks_...` means diffusers' Flux.

    The same names mean Qwen-Image and LTX in kohya's layout, and these the stock loader knows.
    """
    if any(name.startswith(f"lora_unet_{_SINGLE}") for name in names):
        return True
    double = f"lora_unet_{_DOUBLE}"
    rests = [name.removeprefix(double) for name in names if name.startswith(double)]
    theirs = ("_img_mlp", "_txt_mlp", "_img_mod", "_txt_mod", "_attn1_", "_attn2_", "_cross_attn_")
    if not rests or any(mark in rest for rest in rests for mark in theirs):
        return False
    numbers = [int(number[0]) for rest in rests if (number := re.match(r"\d+", rest))]
    return max(numbers, default=_FLUX_BLOCKS) < _FLUX_BLOCKS


def known_name(name: str, key_map: Mapping[str, object]) -> str | None:
    """The name by which a model's key map knows a layer, or None.

    Only the model tells what some names mean. The first attention layers of Qwen-Image or SD3 look like Flux's of the
    public code and are renamed as those; so the spelling of kohya's scripts is looked up as well. A PEFT file names
    layers as the module that was trained does, be it diffusers' or the original one; so the model's own are, and last
    PEFT's name itself, which is how the stock loader knows layers of ACE-Step.
    """
    names = [name]
    if name.startswith("lora_transformer_"):
        names.append(name.replace("lora_transformer_", "lora_unet_", 1))
    for prefix in ("transformer.", "diffusion_model.", _PEFT):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            names += [f"diffusion_model.{rest}", f"diffusion_model.{name}", f"{_PEFT}{rest}"]
    return next((known for known in names if known in key_map), None)


def listed(names: Sequence[str], most: int = 50) -> str:
    """Names for a message, with commas between them; where there are very many, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name:.200}" for name in names[:most]) + more


def is_text_layer(name: str) -> bool:
    """Whether a layer name is of a text encoder."""
    return name.startswith(TEXT_ENCODER_PREFIXES)


def dotted(underscored: str) -> str | None:
    """The dots of a diffusers name that was written with underscores; None where a word is not known.

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


def encoder_in_kohya(name: str, several: bool) -> str | None:
    """kohya's name of a text encoder's layer; None if it is not known.

    several: whether the family has more than one text encoder, so that the first is numbered too. A T5 beside others
    is the third, also where diffusers counts it as the second, as in Flux.
    """
    match = _KOHYA_ENCODER.fullmatch(name) or _ENCODER.fullmatch(name)
    if match is None:
        return None
    layer = match[2].replace(".", "_")
    t5 = layer.startswith("encoder_block_")
    number = match[1] or ("1" if several or t5 else "")
    return f"lora_te{'3' if t5 and number == '2' else number}_{layer}"


def encoder_in_diffusers(name: str) -> str | None:
    """diffusers' name of a text encoder's layer; None if it is not known."""
    if _ENCODER.fullmatch(name):
        return name
    match = _KOHYA_ENCODER.fullmatch(name)
    layer = _CLIP_LAYER.fullmatch(match[2]) if match else None
    if match is None or layer is None:
        return None
    number = f"_{match[1]}" if match[1] not in ("", "1") else ""
    return f"text_encoder{number}.text_model.encoder.layers.{layer[1]}.{layer[2]}.{layer[3]}"
