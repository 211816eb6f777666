"""Files that are written completely or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give a path to write to within the block, and put that file in the place of `path` if the block ends well.

    Whoever may read or write the folder may do so with the file: some writers let nobody else read what they make.
    Raises OSError if the folder cannot be made or the file not be put in its place.
    """
    # A name of its own beside the target, so that the rename stays within one file system; of the target's name it
    # has nothing, which may be as long as names can be
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with suppress(OSError):  # not every file system has permissions
            partial.chmod(path.parent.stat().st_mode & 0o666)
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # where the folder itself could not be made there is nothing to remove
            partial.unlink()


def check_length(path: Path) -> None:
    """Raise ValueError if the name of a file, or of a folder it lies in, is longer than the file system there takes.

    What is long is asked of the file system itself: most take 255 bytes, encrypted ones less.
    """
    there = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    for place in (*(there / part for part in path.absolute().relative_to(there).parts), path):
        try:
            os.lstat(place)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ValueError(
                    f"The name {place.name!r:.300} is too long for a file in {there}: it has "
                    f"{len(os.fsencode(place.name))} bytes. Most file systems take 255; choose a shorter one."
                ) from error


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], header: Mapping[str, str], what: str
) -> None:
    """Write a safetensors file, completely or not at all.

    what: the file is, for messages, such as "slider". Raises OSError if it cannot be written.
    """
    try:
        with written_atomically(Path(path)) as partial:
            save_file(dict(tensors), partial, metadata=dict(header))
    except (OSError, SafetensorError) as error:
        raise OSError(f"Cannot write the {what} to {path}: {error}. Is the folder writable?") from error
