"""Which layers a slider trains: by their role in the model, or as the published trainer chooses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# Families name alike things differently; paths end in a dot here, so that names can be told from their beginnings.
# Attention to the prompt alone; in Cosmos it is the second part of every block
_CROSS = re.compile(r"\.attn2\.|cross_attn|cross_attention|\.blocks\.1\.block\.attn\.")
# Attention of any kind: Flux and its kin have it fused with the rest in single blocks; CogVideoX names q, k, v only
_ATTENTION = re.compile(r"attn|attention|\.(to_)?(q|k|v|qkv)\.|single_blocks\.\d+\.linear[12]\.")
_OUT = re.compile(r"\.(to_out\.\d+|to_add_out|out_proj|output_proj|proj|o|wo)\.$")
# What embeds the sigma; SDXL's label_emb embeds the pooled prompt and the image's size, and is added to it
_EMBEDDINGS = re.compile(r"\.(time_embed|timestep_embed|to_timestep_embed|t_embedder|t_block|time_in|tmlp|label_emb)")
# Convolutions and time projections of a UNet's resnets, and the convolutions of its samplers
_RESNETS = re.compile(
    r"\.(input_blocks|middle_block|output_blocks)\.(\d+\.)+"
    r"(in_layers\.2|emb_layers\.1|out_layers\.3|skip_connection|op|conv)\.$"
)


class _Layer:
    """A layer's roles. joint: True if the model's attention is to prompt and image at once, which is no cross."""

    def __init__(self, path: str, joint: bool) -> None:
        self.path = f"{path}."
        self.is_cross = bool(_CROSS.search(self.path))
        self.is_attention = self.is_cross or bool(_ATTENTION.search(self.path))
        self.reads_prompt = self.is_cross or (joint and self.is_attention)
        self.is_out = bool(_OUT.search(self.path))
        self.is_embedding = bool(_EMBEDDINGS.search(self.path))
        self.is_c3lier = self.is_attention or bool(_RESNETS.search(self.path))

    def within(self, blocks: str) -> bool:
        return f".{blocks}." in self.path


BY_ROLE: dict[str, Callable[[_Layer], bool]] = {
    "all but cross-attention": lambda layer: not layer.is_cross and not layer.is_embedding,
    "self-attention": lambda layer: layer.is_attention and not layer.is_cross,
    "cross-attention": lambda layer: layer.is_cross,
    "attention": lambda layer: layer.is_attention,
    "all": lambda layer: True,
}
# The training methods of the code of Concept Sliders (arXiv 2311.12092, github.com/rohitgandikota/sliders) under its
# own names, with the layers that it calls "c3lier": the linear layers of attention, and `_RESNETS`. They take no
# feed-forward layers, no first and last layer, and nothing that embeds. xattn-up, -mid and -down are those of its
# trainer for Flux, where xattn is any attention. On models without resnets it has no rule for they take attention.
PUBLISHED: dict[str, Callable[[_Layer], bool]] = {
    "noxattn": lambda layer: layer.is_c3lier and not layer.is_cross,
    "innoxattn": lambda layer: layer.is_c3lier and not layer.is_cross,
    "selfattn": lambda layer: layer.is_attention and not layer.is_cross,
    "xattn": lambda layer: layer.reads_prompt,
    "xattn-strict": lambda layer: layer.reads_prompt and not layer.is_out,
    "xattn-up": lambda layer: layer.is_attention and layer.within("output_blocks"),
    "xattn-mid": lambda layer: layer.is_attention and layer.within("middle_block"),
    "xattn-down": lambda layer: layer.is_attention and layer.within("input_blocks"),
    "full": lambda layer: layer.is_c3lier,
    "noxattn-hspace": lambda layer: layer.is_c3lier and not layer.is_cross and layer.within("middle_block"),
    "noxattn-hspace-last": lambda layer: layer.within("middle_block.2.out_layers.3"),
}
CHOICES = (*BY_ROLE, *PUBLISHED)


def choose_layers(paths: Iterable[str], choice: str, pattern: str = "") -> list[str]:
    """Return the paths that a choice takes and that contain the regular expression `pattern`, in their order.

    choice: one of `CHOICES`. Attention to prompt and image at once counts as self-attention; `xattn` takes it where
    a model has no other.
    Raises ValueError if the choice is unknown, or takes no layer of the model.
    """
    if choice not in CHOICES:
        raise ValueError(f"Layers must be one of {', '.join(CHOICES)}; got {choice!r}.")
    paths, takes = list(paths), {**BY_ROLE, **PUBLISHED}[choice]
    joint = not any(_CROSS.search(f"{path}.") for path in paths)
    chosen = [path for path in paths if takes(_Layer(path, joint))]
    if not chosen:
        why = ""
        if choice == "cross-attention":
            why = " It attends to the prompt and to the image at once: that is 'self-attention' here."
        raise ValueError(f"None of the model's {len(paths)} layers is {choice!r}; choose other layers.{why}")
    found = [path for path in chosen if re.search(pattern, path)]
    if not found:
        raise ValueError(
            f"The pattern {pattern!r} is in the path of none of the {len(chosen)} layers that are {choice!r}, "
            f"such as {chosen[0]}."
        )
    return found
