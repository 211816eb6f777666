"""Slider and LoRA files as their trainers write them: keys, alphas, and the weights of ComfyUI that they mean.

What a name stands for is written out by hand, so that no map of names vouches for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

KOHYA = "lora_down.weight", "lora_up.weight"
PEFT = "lora_A.weight", "lora_B.weight"
DIFFUSERS = "lora.down.weight", "lora.up.weight"
NAMED = "lora_A.default.weight", "lora_B.default.weight"
LINEAR = "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"

Target = str | tuple[str, int, int]  # a weight of ComfyUI, or (weight, first row, rows)


@dataclass(frozen=True)
class Layout:
    """How one trainer writes files.

    family: of `FAMILIES`. targets: what the names stand for, without "diffusion_model." and ".weight". ends: of the
    keys of both projections. rank, alpha: the tensors' rank, and the alpha beside them, if there is one. scale: the
    factor of up @ down. endings: of the files. config: an adapter_config.json beside the file. dtype: of the tensors.
    """

    family: str
    targets: Mapping[str, Target]
    ends: tuple[str, str]
    rank: int
    alpha: float | None
    scale: float
    endings: tuple[str, ...] = ("safetensors", "pt")
    config: Mapping[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A random file of this layout, and the change of each weight that it stands for.

        shapes: of ComfyUI's weights, by the names that `targets` uses.
        """
        generator = torch.Generator().manual_seed(7)
        tensors, changes = {}, {}
        for name, target in self.targets.items():
            weight, start, rows = target if isinstance(target, tuple) else (target, 0, shapes[target][0])
            inner = shapes[weight][1:]
            down = torch.randn(self.rank, *inner, generator=generator).to(self.dtype)
            up = torch.randn(rows, self.rank, *(1 for _ in inner[1:]), generator=generator).to(self.dtype)
            tensors |= {f"{name}.{self.ends[0]}": down, f"{name}.{self.ends[1]}": up}
            if self.alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(self.alpha, dtype=self.dtype)
            product = (up.float().flatten(1) @ down.float().flatten(1)).reshape(rows, *inner)
            changes.setdefault(weight, torch.zeros(shapes[weight]))[start : start + rows] += self.scale * product
        return tensors, changes


_BLOCK = "transformer_blocks.0"
SD1 = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": f"input_blocks.1.1.{_BLOCK}.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": f"input_blocks.1.1.{_BLOCK}.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": f"input_blocks.1.1.{_BLOCK}.attn2.to_out.0",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2": f"middle_block.1.{_BLOCK}.ff.net.2",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj": f"output_blocks.1.1.{_BLOCK}.ff.net.0.proj",
}
SDXL = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": f"input_blocks.3.1.{_BLOCK}.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": f"input_blocks.3.1.{_BLOCK}.attn2.to_k",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": f"input_blocks.3.1.{_BLOCK}.attn2.to_out.0",
    "down_blocks.1.attentions.0.proj_out": "input_blocks.3.1.proj_out",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v": f"middle_block.1.{_BLOCK}.attn1.to_v",
    "add_embedding.linear_1": "label_emb.0.0",
}
ATTENTION = {name: target for name, target in SDXL.items() if ".attn" in name}
_SINGLE = "single_blocks.0.linear1"
FLUX = {
    "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv", 0, 64),
    "transformer_blocks.0.attn.to_k": ("double_blocks.0.img_attn.qkv", 64, 64),
    "transformer_blocks.0.attn.add_v_proj": ("double_blocks.0.txt_attn.qkv", 128, 64),
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.0.attn.to_add_out": "double_blocks.0.txt_attn.proj",
    "transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.0",
    "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
    "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
    "single_transformer_blocks.0.attn.to_v": (_SINGLE, 128, 64),
    "single_transformer_blocks.0.proj_mlp": (_SINGLE, 192, 256),
    "single_transformer_blocks.0.proj_out": "single_blocks.0.linear2",
}
FLUX_FUSED = {
    name: name
    for name in (
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.txt_attn.proj",
        "double_blocks.0.img_mlp.2",
        "double_blocks.0.txt_mod.lin",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "single_blocks.0.modulation.lin",
    )
}
QWEN = {
    f"transformer_blocks.0.{name}": f"transformer_blocks.0.{name}"
    for name in ("attn.to_q", "attn.add_k_proj", "attn.to_out.0", "attn.to_add_out", "img_mlp.net.2", "img_mod.1")
}
Z_IMAGE = {
    "layers.0.attention.to_q": ("layers.0.attention.qkv", 0, 256),
    "layers.0.attention.to_v": ("layers.0.attention.qkv", 512, 256),
    "layers.0.attention.to_out.0": "layers.0.attention.out",
    "layers.0.feed_forward.w1": "layers.0.feed_forward.w1",
    "layers.0.adaLN_modulation.0": "layers.0.adaLN_modulation.0",
}
WAN = {
    f"blocks.0.{name}": f"blocks.0.{name}"
    for name in ("self_attn.q", "self_attn.o", "cross_attn.k", "cross_attn.v_img", "ffn.0", "ffn.2")
}
WAN_IN_DIFFUSERS = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.0.attn1.to_out.0": "blocks.0.self_attn.o",
    "blocks.0.attn2.to_k": "blocks.0.cross_attn.k",
    "blocks.0.attn2.add_v_proj": "blocks.0.cross_attn.v_img",
    "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    "blocks.0.ffn.net.2": "blocks.0.ffn.2",
    "condition_embedder.time_proj": "time_projection.1",
}
_REFINER, _REFINED = "context_embedder.token_refiner.refiner_blocks.0", "txt_in.individual_token_refiner.blocks.0"
HUNYUAN = {
    "double_blocks.0.img_attn_qkv": "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_mlp.fc1": "double_blocks.0.img_mlp.0",
    "double_blocks.0.txt_mod.linear": "double_blocks.0.txt_mod.lin",
    "single_blocks.0.linear1": "single_blocks.0.linear1",
    "single_blocks.0.modulation.linear": "single_blocks.0.modulation.lin",
}
HUNYUAN_IN_DIFFUSERS = {
    "transformer_blocks.0.attn.to_k": ("double_blocks.0.img_attn.qkv", 64, 64),
    "transformer_blocks.0.attn.add_v_proj": ("double_blocks.0.txt_attn.qkv", 128, 64),
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.0.attn.to_add_out": "double_blocks.0.txt_attn.proj",
    "transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.0",
    "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
    "transformer_blocks.0.norm1_context.linear": "double_blocks.0.txt_mod.lin",
    "single_transformer_blocks.0.attn.to_q": ("single_blocks.0.linear1", 0, 64),
    "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", 192, 128),
    "single_transformer_blocks.0.proj_out": "single_blocks.0.linear2",
    f"{_REFINER}.attn.to_v": (f"{_REFINED}.self_attn.qkv", 128, 64),
    f"{_REFINER}.ff.net.2": f"{_REFINED}.mlp.2",
    "context_embedder.proj_in": "txt_in.input_embedder",
}


def underscored(names: Mapping[str, Target], prefix: str = "lora_unet_") -> dict[str, Target]:
    return {prefix + name.replace(".", "_"): target for name, target in names.items()}


def dotted(names: Mapping[str, Target], prefix: str) -> dict[str, Target]:
    return {prefix + name: target for name, target in names.items()}


def own(names: Mapping[str, Target]) -> dict[str, Target]:
    """The same weights by the original names, which some of kohya's scripts keep."""
    return {target: target for target in names.values() if isinstance(target, str)}


_RAW = "base_model.model."
_CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"], "bias": "none"}
_WAN = "Wan 2.1 image to video"
LAYOUTS: dict[str, Layout] = {
    "concept sliders, SD 1": Layout("SD 1", underscored(SD1), KOHYA, 4, 1.0, 0.25),
    "concept sliders, SD 1, half precision": Layout(
        "SD 1", underscored(SD1), KOHYA, 4, 1.0, 0.25, dtype=torch.bfloat16
    ),
    "concept sliders, SDXL": Layout("SDXL", underscored(SDXL), KOHYA, 4, 1.0, 0.25),
    "LECO, SD 2": Layout("SD 2", underscored(ATTENTION), KOHYA, 4, 1.0, 0.25, ("safetensors",)),
    "SliderSpace, SDXL": Layout("SDXL", underscored(ATTENTION), KOHYA, 1, 1.0, 1.0),
    "concept sliders, Flux": Layout("Flux", underscored(FLUX), KOHYA, 16, 1.0, 1 / 16),
    "SliderSpace, Flux": Layout("Flux", underscored(FLUX), KOHYA, 1, 1.0, 1.0),
    "SliderSpace, Flux schnell": Layout("Flux schnell", underscored(FLUX), KOHYA, 1, 1.0, 1.0),
    "ai-toolkit, Flux": Layout("Flux", dotted(FLUX, "transformer."), PEFT, 4, None, 1.0),
    "ai-toolkit, Qwen-Image": Layout("Qwen-Image", dotted(QWEN, "diffusion_model."), PEFT, 4, None, 1.0),
    "ai-toolkit, Z-Image": Layout("Z-Image", dotted(Z_IMAGE, "diffusion_model."), PEFT, 4, None, 1.0),
    "kohya, SD 1": Layout("SD 1", underscored(SD1), KOHYA, 4, 2.0, 0.5),
    "kohya, SD 1, original names": Layout("SD 1", underscored(own(SD1)), KOHYA, 4, 2.0, 0.5),
    "kohya, SDXL": Layout("SDXL", underscored(SDXL), KOHYA, 8, 4.0, 0.5),
    "kohya, SDXL, original names": Layout("SDXL", underscored(own(SDXL)), KOHYA, 8, 4.0, 0.5),
    "kohya, Flux": Layout("Flux", underscored(FLUX_FUSED), KOHYA, 4, 2.0, 0.5),
    "diffusers, SDXL": Layout("SDXL", dotted(SDXL, "unet."), DIFFUSERS, 4, None, 1.0),
    "diffusers with PEFT, SDXL": Layout("SDXL", dotted(SDXL, "unet."), PEFT, 4, None, 1.0),
    "raw PEFT, SDXL": Layout("SDXL", dotted(SDXL, _RAW), PEFT, 4, None, 2.0, ("safetensors", "bin"), _CONFIG),
    "raw PEFT, Flux": Layout("Flux", dotted(FLUX, _RAW), PEFT, 4, None, 2.0, ("safetensors", "bin"), _CONFIG),
    "raw PEFT, Qwen-Image": Layout("Qwen-Image", dotted(QWEN, _RAW), PEFT, 4, None, 2.0, config=_CONFIG),
    "raw PEFT, Z-Image": Layout("Z-Image", dotted(Z_IMAGE, _RAW), PEFT, 4, None, 2.0, config=_CONFIG),
    "raw PEFT, rank-stabilised": Layout(
        "SDXL", dotted(SDXL, _RAW), PEFT, 4, None, 4.0, config={**_CONFIG, "use_rslora": True}
    ),
    "raw PEFT, named adapter": Layout(
        "SD 1", dotted(SD1, _RAW), ("lora_A.age.weight", "lora_B.age.weight"), 4, None, 2.0, config=_CONFIG
    ),
    "kohya and musubi-tuner, Z-Image": Layout("Z-Image", underscored(Z_IMAGE), KOHYA, 4, 2.0, 0.5),
    "SimpleTuner, Flux": Layout("Flux", dotted(FLUX, "transformer.base_model.model."), PEFT, 4, None, 1.0),
    "SimpleTuner of old, Flux": Layout(
        "Flux", dotted(FLUX, "transformer.base_model.model."), DIFFUSERS, 4, None, 1.0
    ),
    "a joiner at the end, Flux": Layout(
        "Flux", {f"{name}_": target for name, target in underscored(FLUX).items()}, KOHYA, 4, 2.0, 0.5
    ),
    "DiffSynth, Wan": Layout(_WAN, WAN, NAMED, 4, None, 1.0),
    "DiffSynth with its pipeline, Wan": Layout(_WAN, dotted(WAN, "pipe.dit."), NAMED, 4, None, 1.0),
    "diffusers, Wan": Layout(_WAN, dotted(WAN_IN_DIFFUSERS, "transformer."), PEFT, 4, None, 1.0),
    "raw PEFT without its prefix, Wan": Layout(_WAN, WAN, PEFT, 4, None, 2.0, config=_CONFIG),
    "musubi-tuner, HunyuanVideo": Layout("HunyuanVideo", underscored(HUNYUAN), KOHYA, 4, 2.0, 0.5),
    "OneTrainer, HunyuanVideo": Layout(
        "HunyuanVideo", underscored(HUNYUAN_IN_DIFFUSERS, "lora_transformer_"), KOHYA, 4, 2.0, 0.5
    ),
    "diffusers, HunyuanVideo": Layout(
        "HunyuanVideo", dotted(HUNYUAN_IN_DIFFUSERS, "transformer."), PEFT, 4, None, 1.0
    ),
}
