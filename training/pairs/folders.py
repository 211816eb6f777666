"""Image pairs from a folder, in the layouts that people and the edit scripts of GANs leave.

A folder is one of three things, by where its images lie:

1. **subfolders of strengths**: their names are strengths (`file_names.read_folders`), and images of one name are
   one scene: `less/anna.png`, `more/anna.png`; `-2/`, `-1/`, `0/`, `1/`, `2/`.
2. **subfolders of scenes**: one scene or more in each, its images named by strength: `seed0042/-3.png`.
   Subfolders with plain numbers for names are this if their images are named by signed numbers or by words.
3. **flat**: images alone, named by scene and strength: `seed0042_+2.png`.

Beside an image, `NAME.txt` is its prompt and `NAME_mask.png` its mask, NAME being the image's or the scene's;
masks may also lie in a subfolder `mask` or `masks`, and `mask.png` is for all scenes of its folder. Names that begin
with a point are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .file_names import UNDERSTOOD, by_count, by_edits, by_numbers, by_words, read_folders, read_names
from .image_files import is_image, passed_over, read_caption, read_image, read_mask
from .image_sets import STEP, ImagePairs, ImageSet, prepare

MASK_FOLDERS = ("mask", "masks")
_SHOWN = 5  # names in a message


@dataclass
class _Found:
    """What lies in a folder itself: files by their names without ending, and subfolders that hold images."""

    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)  # by what they are for; "" for all scenes
    captions: dict[str, Path] = field(default_factory=dict)
    subfolders: list[_Found] = field(default_factory=list)


@dataclass(frozen=True)
class _Scene:
    """The files of one set, before they are read. keys: names under which captions and masks may speak of it."""

    name: str
    images: dict[float, Path]
    keys: tuple[str, ...]
    near: tuple[_Found, ...]  # where its captions and masks may lie


def read_pairs(
    folder: Path,
    marks: Mapping[str, float] | None = None,
    prompt: str = "",
    side: int = 512,
    step: int = STEP,
) -> ImagePairs:
    """Every scene of a folder as an image set of its bucket's size, in the order of their names.

    marks: strengths of names that the rules do not know, see `file_names.parse_marks`. prompt: of scenes that have
    no caption. side: the wished size, as the side of a square in pixels. step: sizes are multiples of it.
    Raises ValueError, naming folders and files, for names that are not understood, scenes without a partner,
    strengths that are there twice, images that cannot be read or differ in size, and masks for nothing.
    """
    top = _look(folder)
    scenes = _scenes(top, marks or {})
    _check_matching(scenes, folder)
    _check_masks(scenes)
    # One set after the other, so that only one lies in memory at its full size.
    return ImagePairs(tuple(prepare(_read(scene, prompt, folder), side, step) for scene in scenes))


def _look(folder: Path, depth: int = 1) -> _Found:
    found = _Found(folder)
    for path in sorted(folder.iterdir()):
        if passed_over(path.name):
            continue
        if path.is_dir() and path.name.lower() in MASK_FOLDERS:
            for mask in filter(is_image, sorted(path.iterdir())):
                _put(found.masks, mask.stem.removesuffix("_mask"), mask)
        elif path.is_dir() and depth:
            if (inside := _look(path, depth - 1)).images:
                found.subfolders.append(inside)
        elif path.suffix.lower() == ".txt":
            found.captions[path.stem] = path
        elif is_image(path) and (path.stem.endswith("_mask") or path.stem == "mask"):
            _put(found.masks, path.stem.removesuffix("mask").removesuffix("_"), path)
        elif is_image(path):
            _put(found.images, path.stem, path)
    return found


def _put(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise ValueError(f"{files[name]} and {path} stand for the same image; keep one of them.")
    files[name] = path


def _scenes(top: _Found, marks: Mapping[str, float]) -> list[_Scene]:
    images = [path for found in (top, *top.subfolders) for path in found.images.values()]
    if not images:
        raise ValueError(f"{top.folder} holds no images (png, jpg, jpeg, webp or bmp), nor do its subfolders.")
    if len(images) == 1:
        raise ValueError(f"{top.folder} holds one image, {images[0].name}; a pair takes two.")
    if not top.subfolders:
        return _scenes_by_name(top, marks, "", ())
    if top.images:
        raise ValueError(
            f"{top.folder} holds images ({listed(top.images)}) and subfolders with images "
            f"({listed(f.folder.name for f in top.subfolders)}); it must be one or the other."
        )
    strengths = read_folders([found.folder.name for found in top.subfolders], marks)
    if strengths is not None and (marks or not _are_scenes(top)):
        return _scenes_by_folder(top, strengths)
    if strengths is None:
        _check_scene_folders(top, marks)
    named = [_scenes_by_name(found, marks, found.folder.name, (top,)) for found in top.subfolders]
    return [scene for scenes in named for scene in scenes]


def _are_scenes(top: _Found) -> bool:
    """Returns True if subfolders whose names may be strengths are scenes all the same.

    Raises ValueError where their names can be nothing but strengths, and those of their images too.
    """
    folders = [found.folder.name for found in top.subfolders]
    inside = [list(found.images) for found in top.subfolders]
    signed = all(by_numbers(names, signed=True) for names in inside)
    if all(name.isdecimal() for name in folders):
        return signed or all(by_words(names) or by_edits(names) for names in inside)
    if signed:
        raise ValueError(
            f"{top.folder}: both the subfolders ({listed(folders)}) and the images in them ({listed(inside[0])}) "
            f"are named by strengths; rename one, or say the strengths of the subfolders."
        )
    return False


def _check_scene_folders(top: _Found, marks: Mapping[str, float]) -> None:
    """Images that are merely counted are steps of a scene only where the subfolders are counted as well.

    In subfolders with other names they might be any images, and the names strengths that no rule knows.
    Raises ValueError then.
    """
    folders = [found.folder.name for found in top.subfolders]
    if marks or all(name[-1].isdigit() for name in folders):
        return
    if any(by_count(list(found.images)) or not read_names(list(found.images), {}) for found in top.subfolders):
        raise ValueError(f"{top.folder}: cannot tell strengths from the subfolders {listed(folders)}. {UNDERSTOOD}")


def _scenes_by_folder(top: _Found, strengths: Mapping[str, float]) -> list[_Scene]:
    images: dict[str, dict[float, Path]] = defaultdict(dict)
    for found in top.subfolders:
        strength = strengths[found.folder.name]
        for name, path in found.images.items():
            _put_at(images[name], strength, path)
    near = (top, *top.subfolders)
    return [_Scene(name, files, (name,), near) for name, files in sorted(images.items())]


def _scenes_by_name(
    found: _Found, marks: Mapping[str, float], prefix: str, above: tuple[_Found, ...]
) -> list[_Scene]:
    """The scenes of a folder whose images are named by scene and strength. prefix: for their names."""
    reading = read_names(list(found.images), marks)
    if reading is None:
        rule = f"None but {listed(marks)} were asked for, as last parts of names." if marks else UNDERSTOOD
        raise ValueError(f"{found.folder}: cannot tell strengths from the images {listed(found.images)}. {rule}")
    images: dict[str, dict[float, Path]] = defaultdict(dict)
    for name, (scene, strength) in reading.items():
        _put_at(images[scene], strength, found.images[name])
    scenes = []
    for scene, files in sorted(images.items()):
        name = "/".join(filter(None, (prefix, scene)))
        keys = (name, scene, *(path.stem for path in files.values()))
        scenes.append(_Scene(name, files, keys, (found, *above)))
    return scenes


def _put_at(files: dict[float, Path], strength: float, path: Path) -> None:
    if strength in files:
        raise ValueError(
            f"{files[strength]} and {path} are both of strength {strength:g}; there must be one of each."
        )
    files[strength] = path


def _check_matching(scenes: Sequence[_Scene], folder: Path) -> None:
    """Every scene must be there at every strength. Raises ValueError, saying which are not."""
    everywhere = sorted({strength for scene in scenes for strength in scene.images})
    if len(everywhere) < 2:
        raise ValueError(f"{folder}: all images are of strength {everywhere[0]:g}; a pair takes two strengths.")
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
        )


def _check_masks(scenes: Sequence[_Scene]) -> None:
    """Every mask must be of some scene. Raises ValueError otherwise."""
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
    """The captions or masks of a scene by its names, or else by other names."""
    for keys in (scene.keys, otherwise):
        if met := [
            getattr(f, kind)[key] for f in scene.near for key in dict.fromkeys(keys) if key in getattr(f, kind)
        ]:
            return met
    return []


def listed(names: Iterable[str]) -> str:
    """The first few names, for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
