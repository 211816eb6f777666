"""Safetensors files, written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: str | os.PathLike, tensors: Mapping[str, Tensor], header: Mapping[str, str], what: str) -> None:
    """Write a file; until all of it is on the disk there is none, or the one that was there before.

    what: it is, for messages. Raises OSError if it cannot be written.
    """
    path = Path(path)
    # A name of its own beside the target, so that the rename stays within one file system
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), partial, metadata=dict(header))
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Cannot write the {what} to {path}: {error}. Is the folder writable?") from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made there is nothing to remove
            partial.unlink()
