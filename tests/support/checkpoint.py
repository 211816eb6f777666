"""Writes a small checkpoint with random weights that ComfyUI's own Load Checkpoint knows as SD 1 or SDXL.

    PYTHON tests/support/checkpoint.py COMFYUI FAMILY FILE

What ComfyUI knows the family by is kept: channels, depths where it looks at them, and the width of prompts. The rest
is as small as it lets one: every level as wide as the first, and a tiny autoencoder. Its text encoders have one size
only; their layers are zeros, which hand the embeddings of the words through, and take no room in the file.
"""

import json
import sys
from math import prod
from pathlib import Path

import torch

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "image_size": 32,
}
UNETS = {
    "SD 1": {
        **UNET,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 4,
        "context_dim": 768,
        "num_heads": 8,
        "use_linear_in_transformer": False,
    },
    "SDXL": {
        **UNET,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 1, 1],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [0] * 9,
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
    },
}
TEXTS = {  # where a checkpoint has its text encoders; their widths and layers
    "SD 1": (("cond_stage_model.transformer.text_model.", 768, 12),),
    "SDXL": (
        ("conditioner.embedders.0.transformer.text_model.", 768, 12),
        ("conditioner.embedders.1.model.transformer.text_model.", 1280, 32),
    ),
}
WORDS, TOKENS = 49408, 77


def text_shapes(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Of a CLIP text model's tensors, by name."""
    parts = {f"self_attn.{name}_proj": (width, width) for name in "qkv"}
    parts |= {"self_attn.out_proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embedding.weight": (n, width) for name, n in (("token", WORDS), ("position", TOKENS))
    }
    for layer in range(layers):
        for part, shape in parts.items():
            shapes[f"encoder.layers.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{part}.bias"] = shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"encoder.layers.{layer}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return shapes | {f"final_layer_norm.{part}": (width,) for part in ("weight", "bias")}


def random_like(tensors: dict[str, torch.Tensor], prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights that keep the size of what goes through them; norms at 1."""
    made = {}
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            made[prefix + name] = torch.randn(tensor.shape, generator=generator) * 0.7 * tensor[0].numel() ** -0.5
        else:
            made[prefix + name] = torch.full(tensor.shape, float(not name.endswith("bias")))
    return made


def weights(family: str) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, ...]]]:
    """(tensors, shapes of those that are all zeros), by the names of a checkpoint."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(0)
    unet = UNetModel(**UNETS[family], dtype=torch.float32)
    tensors = random_like(unet.state_dict(), "model.diffusion_model.", generator)
    tensors |= random_like(TAESD(latent_channels=4).state_dict(), "first_stage_model.", generator)
    zeros = {}
    for prefix, width, layers in TEXTS[family]:
        zeros |= {prefix + name: shape for name, shape in text_shapes(width, layers).items()}
        for name in ("embeddings.token_embedding.weight", "final_layer_norm.weight"):
            shape = zeros.pop(prefix + name)
            tensors[prefix + name] = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator)
    return tensors, zeros


def write(file: Path, tensors: dict[str, torch.Tensor], zeros: dict[str, tuple[int, ...]]) -> None:
    """As safetensors in float16, the zeros as a hole at the end."""
    header, at = {}, 0
    for name, shape in {**{name: tuple(tensor.shape) for name, tensor in tensors.items()}, **zeros}.items():
        end = at + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    said = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(said).to_bytes(8, "little") + said)
        for tensor in tensors.values():
            out.write(tensor.half().numpy().tobytes())
        out.truncate(8 + len(said) + at)


if __name__ == "__main__":
    folder, family, file = sys.argv[1:]
    sys.path.insert(0, folder)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    write(Path(file), *weights(family))
