"""Models compiled by the host's node: their graphs do not know of hooks that came later."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

COMPILED = "torch.compile"  # the key of the host's own wrapper


def eagerly(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Within the block a compiled model runs as it is written, so that hooks on its layers act.

    options: the host's transformer options, which say whether it is compiled.
    """
    if COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
