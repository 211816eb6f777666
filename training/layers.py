"""Which layers a slider trains, chosen by their role in the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The cross-attention of UNets is attn2; elsewhere the word stands in the path.
_CROSS = (".attn2.", ".cross_attn.", ".cross_attention.")
_SELF = (".attn1.", ".self_attn.", ".self_attention.")
_ANY_ATTENTION = (".attn.", ".attention.", *_CROSS, *_SELF)

CHOICES = ("all but cross-attention", "self-attention", "cross-attention", "attention", "all")


def choose(paths: Iterable[str], choice: str, pattern: str = "") -> list[str]:
    """The paths of the modules a choice takes and the regular expression `pattern` is found in, in their order.

    Raises ValueError if the choice is unknown, or takes no layer of the model.
    """
    if choice not in CHOICES:
        raise ValueError(f"Layers must be one of {', '.join(CHOICES)}; got {choice!r}.")
    paths = list(paths)
    chosen = [path for path in paths if _takes(f"{path}.", choice)]
    if not chosen:
        raise ValueError(f"None of the model's {len(paths)} layers is {choice!r}; choose other layers.")
    found = [path for path in chosen if re.search(pattern, path)]
    if not found:
        raise ValueError(
            f"The pattern {pattern!r} is in the path of none of the {len(chosen)} layers that are {choice!r}, "
            f"such as {chosen[0]}."
        )
    return found


def _takes(path: str, choice: str) -> bool:
    if choice == "all":
        return True
    if choice == "all but cross-attention":
        return not _any(path, _CROSS)
    return _any(path, {"self-attention": _SELF, "cross-attention": _CROSS, "attention": _ANY_ATTENTION}[choice])


def _any(path: str, words: tuple[str, ...]) -> bool:
    return any(word in path for word in words)
