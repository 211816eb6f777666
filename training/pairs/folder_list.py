"""Which folders of images there are to choose from, and when what lies in one has changed.

Links are followed: whoever puts one into the folder means what it leads to. Names are another matter, as they come
with the workflows of others: they are refused by what they say.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path

from .folders import listed
from .image_files import is_image, passed_over

LINKED = 3  # folders below a link that are looked into: a link may lead to a whole disk


def find_folder(root: Path, name: str) -> Path:
    """Return the folder of that name below root.

    Raises ValueError for a name that leads out of it, FileNotFoundError, saying what there is, for a missing one.
    """
    if _leads_out(name):
        raise ValueError(
            f"The folder {name!r} leads out of {root}, or is written with a backslash; choose one inside it, such as "
            f"eyes or eyes/small."
        )
    path = root / name
    if not name.strip() or not path.is_dir():
        there = listed(image_folders(root)) or "no folder with images"
        raise FileNotFoundError(f"There is no folder {name!r} in {root}; there is {there}.")
    return path


def image_folders(root: Path) -> list[str]:
    """Folders below root, by their path from it, that hold images themselves or in a subfolder of their own."""
    holding: set[Path] = set()
    for place, files in _places(root):
        if any(is_image(Path(file)) and not passed_over(file) for file in files):
            holding |= {place, place.parent}
    names = (p.relative_to(root).as_posix() for p in holding if p != root and p.is_relative_to(root))
    return sorted(name for name in names if not _leads_out(name))


def fingerprint(folder: Path) -> str:
    """Changes whenever a file of the folder comes, goes or is written: a hash of names, sizes and times."""
    digest = hashlib.sha256()
    for place, files in _places(folder):
        for path in (place / file for file in files):
            with suppress(OSError):  # a link that leads nowhere, say
                about = path.stat()
                digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _leads_out(name: str) -> bool:
    """Returns True if a name is not that of a folder inside, or would not be on every system."""
    path = Path(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name or "\\" in name


def _places(folder: Path, above: tuple[str, ...] = (), left: float = inf) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of what else lies in it) of a folder and those below it, in order.

    above: where the folders that it lies in really are; a link back to one of them is not followed. left: how many
    folders further down are looked into. What may not be read, or lies on a disk that is gone, is passed over: it
    holds nothing for us.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    subfolders = [entry for entry in found if _is_folder(entry)]
    yield folder, [entry.name for entry in found if entry not in subfolders]
    for entry in subfolders:
        further = min(left - 1, LINKED) if entry.is_symlink() else left - 1
        if further >= 0 and not passed_over(entry.name):
            yield from _places(folder / entry.name, (*above, real), further)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
