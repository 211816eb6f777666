"""Which folders of pictures there are to choose from, and when what lies in one has changed.

Links are followed: whoever puts one into the folder means what it leads to. Names are another matter, as they come
with the workflows of others: they are refused by what they say.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

from .pair_folders import listed
from .pictures import is_picture, passed_over

LINKED = 3  # folders below a link that are looked into: a link may lead to a whole disk


def find_folder(root: Path, name: str) -> Path:
    """The folder of that name below root.

    Raises ValueError for a name that leads out of it, FileNotFoundError, saying what there is, for a missing one.
    """
    if _leads_out(name):
        raise ValueError(
            f"The folder {name!r} leads out of {root}, or is written with a backslash; choose one inside it, such as "
            f"eyes or eyes/small."
        )
    path = root / name
    if not name.strip() or not path.is_dir():
        there = listed(picture_folders(root)) or "no folder with pictures"
        raise FileNotFoundError(f"There is no folder {name!r} in {root}; there is {there}.")
    return path


def picture_folders(root: Path) -> list[str]:
    """Folders below root, by their path from it, that hold pictures themselves or in a subfolder of their own."""
    holding: set[Path] = set()
    for place, files in _places(root):
        if any(is_picture(Path(file)) and not passed_over(file) for file in files):
            holding |= {place, place.parent}
    names = (p.relative_to(root).as_posix() for p in holding if p != root and p.is_relative_to(root))
    return sorted(name for name in names if not _leads_out(name))


def fingerprint(folder: Path) -> str:
    """Changes whenever a file of the folder comes, goes or is written: a hash of names, sizes and times."""
    digest = hashlib.sha256()
    for place, files in _places(folder):
        for path in (place / file for file in files):
            if path.is_file():
                about = path.stat()
                digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _leads_out(name: str) -> bool:
    """Whether a name is not that of a folder inside, or would not be on every system."""
    path = Path(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name or "\\" in name


def _places(folder: Path, above: tuple[Path, ...] = (), left: float = inf) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of what else lies in it) of a folder and those below it, in order.

    above: where the folders that it lies in really are; a link back to one of them is not followed. left: how many
    folders further down are looked into.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # one that may not be read is passed over, as it holds nothing for us
        return
    subfolders = [folder / name for name in names if (folder / name).is_dir()]
    yield folder, sorted({*names} - {path.name for path in subfolders})
    for path in subfolders:
        further = min(left - 1, LINKED) if path.is_symlink() else left - 1
        if further >= 0 and not passed_over(path.name):
            yield from _places(path, (*above, real), further)
