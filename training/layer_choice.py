"""Which layers a slider trains, chosen by their role in the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Families name alike things differently; paths end in a dot here, so that names can be told from their beginnings.
# Attention to the prompt alone; in Cosmos it is the second part of every block
_CROSS = re.compile(r"\.attn2\.|cross_attn|cross_attention|\.blocks\.1\.block\.attn\.")
# Attention of any kind: Flux and its kin have it fused with the rest in single blocks; CogVideoX names q, k, v only
_ATTENTION = re.compile(r"attn|attention|\.(to_)?(q|k|v|qkv)\.|single_blocks\.\d+\.linear[12]\.")
# What tells the model the sigma; the published choices leave it alone
_TIME = re.compile(r"\.(time_embed|timestep_embed|to_timestep_embed|t_embedder|t_block|time_in|tmlp)")

CHOICES = ("all but cross-attention", "self-attention", "cross-attention", "attention", "all")


def choose_layers(paths: Iterable[str], choice: str, pattern: str = "") -> list[str]:
    """Return the paths that a choice takes and that contain the regular expression `pattern`, in their order.

    choice: one of `CHOICES`.
    Raises ValueError if the choice is unknown, or takes no layer of the model.
    """
    if choice not in CHOICES:
        raise ValueError(f"Layers must be one of {', '.join(CHOICES)}; got {choice!r}.")
    paths = list(paths)
    chosen = [path for path in paths if _takes(f"{path}.", choice)]
    if not chosen:
        why = ""
        if choice == "cross-attention":
            why = " It attends to the prompt and to the image at once: that is 'self-attention' here."
        raise ValueError(f"None of the model's {len(paths)} layers is {choice!r}; choose_layers other layers.{why}")
    found = [path for path in chosen if re.search(pattern, path)]
    if not found:
        raise ValueError(
            f"The pattern {pattern!r} is in the path of none of the {len(chosen)} layers that are {choice!r}, "
            f"such as {chosen[0]}."
        )
    return found


def _takes(path: str, choice: str) -> bool:
    """Returns True if a choice takes the layer. Attention to prompt and image at once counts as self-attention."""
    is_cross = bool(_CROSS.search(path))
    is_attention = is_cross or bool(_ATTENTION.search(path))
    return {
        "all": True,
        "all but cross-attention": not is_cross and not _TIME.search(path),
        "attention": is_attention,
        "self-attention": is_attention and not is_cross,
        "cross-attention": is_cross,
    }[choice]
