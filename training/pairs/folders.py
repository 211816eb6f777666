"""Reads image pairs from a folder.

A folder has one of two layouts:

1. **a subfolder for each strength**: the subfolders' names are strengths (`file_names.read_folders`), and images of
   one name are one scene: `less/anna.png`, `more/anna.png`; `-2/`, `-1/`, `0/`, `1/`, `2/`.
2. **flat**: images alone, named by scene and strength (`file_names.read_names`): `seed0042_+2.png`.

Beside an image, `NAME.txt` is its prompt and `NAME_mask.png` its mask, NAME being the image's or the scene's;
masks may also lie in a subfolder `mask` or `masks`, and `mask.png` is for all scenes. Names that begin with a point
are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .file_names import UNDERSTOOD, by_numbers, by_words, read_folders, read_names
from .image_files import is_image, passed_over, read_caption, read_image, read_mask
from .image_sets import STEP, ImagePairs, ImageSet, prepare

MASK_FOLDERS = ("mask", "masks")
_SHOWN = 5  # names in a message


@dataclass
class _Contents:
    """A folder's files, by their names without the ending, and its subfolders with images.

    others: what is no image that can be read, nor a caption; that of subfolders without images too.
    """

    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)  # by what they are for; "" for all scenes
    captions: dict[str, Path] = field(default_factory=dict)
    subfolders: list[_Contents] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Scene:
    """The files of one set, before they are read. keys: the names that its captions and masks may have."""

    name: str
    images: dict[float, Path]
    keys: tuple[str, ...]
    near: tuple[_Contents, ...]  # where its captions and masks may lie


def read_pairs(
    folder: Path,
    marks: Mapping[str, float] | None = None,
    prompt: str = "",
    side: int = 512,
    step: int = STEP,
) -> ImagePairs:
    """Read every scene of a folder as an image set of its bucket's size, in the order of their names.

    marks: strengths of names that the rules do not know, see `file_names.parse_marks`. prompt: of scenes that have
    no caption. side: the wished size, as the side of a square in pixels. step: sizes are multiples of it.
    Raises ValueError, naming folders and files, for names that are not understood, scenes without a partner,
    strengths that are there twice, images that cannot be read or differ in size, and masks for nothing.
    """
    top = _list_contents(folder)
    scenes = _scenes(top, marks or {})
    _check_matching(scenes, folder, _sentence(_left_out(top)))
    _check_masks(scenes)
    # One set after the other, so that only one lies in memory at its full size.
    return ImagePairs(tuple(prepare(_read(scene, prompt, folder), side, step) for scene in scenes))


def _list_contents(folder: Path, depth: int = 1) -> _Contents:
    found = _Contents(folder)
    for path in sorted(folder.iterdir()):
        if passed_over(path.name):
            continue
        if path.is_dir() and path.name.lower() in MASK_FOLDERS:
            for mask in sorted(path.iterdir()):
                if is_image(mask):
                    _put(found.masks, mask.stem.removesuffix("_mask"), mask)
                elif not (mask.is_dir() or passed_over(mask.name)):
                    found.others.append(mask)
        elif path.is_dir() and depth:
            if (inside := _list_contents(path, depth - 1)).images:
                found.subfolders.append(inside)
            else:
                found.others += inside.others
        elif path.suffix.lower() == ".txt":
            found.captions[path.stem] = path
        elif is_image(path) and (path.stem.endswith("_mask") or path.stem == "mask"):
            _put(found.masks, path.stem.removesuffix("mask").removesuffix("_"), path)
        elif is_image(path):
            _put(found.images, path.stem, path)
        elif not path.is_dir():
            found.others.append(path)
    return found


def left_out(folder: Path) -> str:
    """Say which files of a folder of pairs are neither images that can be read nor captions; "" if there are none."""
    return _left_out(_list_contents(folder))


def _left_out(top: _Contents) -> str:
    names = [path.relative_to(top.folder).as_posix() for found in (top, *top.subfolders) for path in found.others]
    return f"left out, since they are no images that can be read here: {listed(names)}" if names else ""


def _sentence(said: str) -> str:
    """Return what is said as a sentence after others; "" if there is nothing."""
    return f" {said[0].upper()}{said[1:]}." if said else ""


def _put(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise ValueError(f"{files[name]} and {path} stand for the same image; keep one of them.")
    files[name] = path


def _scenes(top: _Contents, marks: Mapping[str, float]) -> list[_Scene]:
    others = _sentence(_left_out(top))
    images = [path for found in (top, *top.subfolders) for path in found.images.values()]
    if not images:
        raise ValueError(f"{top.folder} holds no images that can be read, nor do its subfolders.{others}")
    if len(images) == 1:
        raise ValueError(f"{top.folder} holds one image, {images[0].name}; a pair takes two.{others}")
    if not top.subfolders:
        return _scenes_by_name(top, marks)
    if top.images:
        raise ValueError(
            f"{top.folder} holds images ({listed(top.images)}) and subfolders with images "
            f"({listed(f.folder.name for f in top.subfolders)}); it must be one or the other."
        )
    names = [found.folder.name for found in top.subfolders]
    strengths = read_folders(names, marks)
    if strengths is None:
        raise ValueError(
            f"{top.folder}: cannot tell strengths from the subfolders {listed(names)}. {UNDERSTOOD}{others}"
        )
    if not marks:
        _check_strengths_once(top)
    return _scenes_by_folder(top, strengths)


def _check_strengths_once(top: _Contents) -> None:
    """Raise ValueError if the images in subfolders with strengths for names are named by strengths as well.

    Subfolders with plain numbers then rather number scenes: `1/less.png`, `1/more.png`, `2/less.png`, `2/more.png`.
    """
    folders = [found.folder.name for found in top.subfolders]
    inside = [list(found.images) for found in top.subfolders]
    are_numbers = all(name.isdecimal() for name in folders)
    if all(by_numbers(names, signed=True) or (are_numbers and by_words(names)) for names in inside):
        raise ValueError(
            f"{top.folder}: both the subfolders ({listed(folders)}) and the images in them ({listed(inside[0])}) "
            f"are named by strengths; rename one, or say the strengths of the subfolders."
        )


def _scenes_by_folder(top: _Contents, strengths: Mapping[str, float]) -> list[_Scene]:
    images: dict[str, dict[float, Path]] = defaultdict(dict)
    for found in top.subfolders:
        strength = strengths[found.folder.name]
        for name, path in found.images.items():
            _put_at(images[name], strength, path)
    near = (top, *top.subfolders)
    return [_Scene(name, files, (name,), near) for name, files in sorted(images.items())]


def _scenes_by_name(found: _Contents, marks: Mapping[str, float]) -> list[_Scene]:
    reading = read_names(list(found.images), marks)
    if reading is None:
        rule = f"None but {listed(marks)} were asked for, as last parts of names." if marks else UNDERSTOOD
        raise ValueError(f"{found.folder}: cannot tell strengths from the images {listed(found.images)}. {rule}")
    images: dict[str, dict[float, Path]] = defaultdict(dict)
    for name, (scene, strength) in reading.items():
        _put_at(images[scene], strength, found.images[name])
    return [
        _Scene(scene, files, (scene, *(path.stem for path in files.values())), (found,))
        for scene, files in sorted(images.items())
    ]


def _put_at(files: dict[float, Path], strength: float, path: Path) -> None:
    if strength in files:
        raise ValueError(
            f"{files[strength]} and {path} are both of strength {strength:g}; there must be one of each."
        )
    files[strength] = path


def _check_matching(scenes: Sequence[_Scene], folder: Path, others: str) -> None:
    """Raise ValueError, saying which scenes lack which strengths, unless each is there at every strength.

    others: a sentence on the files that were left out, which may be what is missing.
    """
    everywhere = sorted({strength for scene in scenes for strength in scene.images})
    if len(everywhere) < 2:
        raise ValueError(
            f"{folder}: all images are of strength {everywhere[0]:g}; a pair takes two strengths.{others}"
        )
    problems = []
    for strength in everywhere:
        having = [scene for scene in scenes if strength in scene.images]
        if missing := [scene.name for scene in scenes if strength not in scene.images]:
            example = having[0].images[strength].relative_to(folder).as_posix()
            problems.append(
                f"strength {strength:g} ({example}) has {len(having)} of them and lacks {listed(missing)}"
            )
    if problems:
        raise ValueError(
            f"{folder}: each of the {len(scenes)} scenes must be there at every strength, but {'; '.join(problems)}."
            f"{others}"
        )


def _check_masks(scenes: Sequence[_Scene]) -> None:
    """Raise ValueError for a mask that is of no scene."""
    keys = {key for scene in scenes for key in scene.keys}
    for found in {id(found): found for scene in scenes for found in scene.near}.values():
        for name, path in found.masks.items():
            if name and name not in keys:
                raise ValueError(f"The mask {path} is of no image; the scenes are {listed(s.name for s in scenes)}.")


def _read(scene: _Scene, prompt: str, folder: Path) -> ImageSet:
    strengths = sorted(scene.images)
    masks = _beside(scene, "masks", ("",))
    if len(masks) > 1:
        raise ValueError(f"{masks[0]} and {masks[1]} are both masks of '{scene.name}'; keep one of them.")
    captions = {text: path for path in _beside(scene, "captions") if (text := read_caption(path))}
    if len(captions) > 1:
        one, other = list(captions.values())[:2]
        raise ValueError(f"{one} and {other} differ, but both are the prompt of '{scene.name}'.")
    return ImageSet(
        images=tuple(read_image(scene.images[strength]) for strength in strengths),
        strengths=tuple(strengths),
        name=scene.name,
        prompt=next(iter(captions), prompt),
        mask=read_mask(masks[0]) if masks else None,
        files=tuple(scene.images[strength].relative_to(folder).as_posix() for strength in strengths),
    )


def _beside(scene: _Scene, kind: str, otherwise: tuple[str, ...] = ()) -> list[Path]:
    """Return the captions or masks of a scene by its names, or else by other names."""
    for keys in (scene.keys, otherwise):
        if met := [
            getattr(f, kind)[key] for f in scene.near for key in dict.fromkeys(keys) if key in getattr(f, kind)
        ]:
            return met
    return []


def listed(names: Iterable[str]) -> str:
    """Join the first few names for a message, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
