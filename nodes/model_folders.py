"""Slider files and inversion files by the names that ComfyUI's model folders list them under.

Sliders are in the folders `sliders` and `loras` and in the pack, inversions in `inversions`, networks for LPIPS in
`lpips`. Importing this module registers `sliders`, `inversions` and `lpips` with ComfyUI, and a folder of the pack's
own among its `loras`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ..pocket.models.loading import FOLDER, LORAS
from ..sliders.formats.atomic_write import check_length

SHIPPED = Path(__file__).parent.parent / "pocket" / "sliders"
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
_FOLDERS = ("sliders", "loras")  # a name in both is the file in `sliders`
_HIDDEN = "loras/"  # prefix of the file in `loras` whose name one in `sliders` has too

folder_paths.add_model_folder_path("sliders", str(Path(folder_paths.models_dir) / "sliders"), is_default=True)
folder_paths.add_model_folder_path("sliders", str(SHIPPED))
# Without endings ComfyUI's list of models would show the preview images beside the sliders too
_paths, _ = folder_paths.folder_names_and_paths["sliders"]
folder_paths.folder_names_and_paths["sliders"] = (_paths, set(folder_paths.supported_pt_extensions))

# The pocket model's few-step LoRA, for ComfyUI's own loaders
folder_paths.add_model_folder_path("loras", str(FOLDER / LORAS))

folder_paths.add_model_folder_path("inversions", str(Path(folder_paths.models_dir) / "inversions"), is_default=True)
folder_paths.folder_names_and_paths["inversions"] = (folder_paths.get_folder_paths("inversions"), {".safetensors"})

folder_paths.add_model_folder_path("lpips", str(Path(folder_paths.models_dir) / "lpips"), is_default=True)
folder_paths.folder_names_and_paths["lpips"] = (
    folder_paths.get_folder_paths("lpips"),
    set(folder_paths.supported_pt_extensions),
)


def slider_names() -> list[str]:
    """List the files of the `sliders` and `loras` folders; a name in both is listed as NAME and as loras/NAME."""
    ours, theirs = (
        {name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(ENDINGS)}
        for folder in _FOLDERS
    )
    return sorted({*ours, *(f"{_HIDDEN}{name}" if name in ours else name for name in theirs)})


def find_slider(name: str) -> Path:
    """Return the file of one of the `slider_names`. Raises FileNotFoundError that says where it looked."""
    candidates = [(folder, name) for folder in _FOLDERS]
    if name.startswith(_HIDDEN):
        candidates.append(("loras", name.removeprefix(_HIDDEN)))
    for folder, file in candidates:
        if path := folder_paths.get_full_path(folder, file):
            return Path(path)
    folders = [path for folder in _FOLDERS for path in folder_paths.get_folder_paths(folder)]
    raise FileNotFoundError(f"There is no slider file {name!r} in {', '.join(folders)}.")


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes with a file: its time, its size, and when it last became another under its name.

    Copying and unpacking may keep the time, and two sliders of one recipe are of one size.
    """
    about = path.stat()
    return about.st_mtime_ns, about.st_size, about.st_ctime_ns, about.st_ino


def inversion_names() -> list[str]:
    """List the files of the `inversions` folder."""
    return folder_paths.get_filename_list("inversions")


def find_inversion(name: str) -> Path:
    """Return the file of one of the `inversion_names`. Raises FileNotFoundError that says where it looked."""
    if path := folder_paths.get_full_path("inversions", name):
        return Path(path)
    raise FileNotFoundError(
        f"There is no inversion file {name!r} in {', '.join(folder_paths.get_folder_paths('inversions'))}."
    )


def lpips_names() -> list[str]:
    """List the files of the `lpips` folder."""
    return folder_paths.get_filename_list("lpips")


def find_lpips(name: str) -> Path:
    """Return the file of one of the `lpips_names`. Raises FileNotFoundError that says where it looked."""
    if path := folder_paths.get_full_path("lpips", name):
        return Path(path)
    raise FileNotFoundError(
        f"There is no network for LPIPS {name!r} in {', '.join(folder_paths.get_folder_paths('lpips'))}. It takes "
        "torchvision's AlexNet (alexnet-owt-7be5be79.pth) or VGG16 (vgg16-397923af.pth)."
    )


def output_path(folder_name: str, name: str, node: str) -> tuple[Path, str]:
    """Choose where a node writes a file: its path in one of ComfyUI's model folders, and its name below that folder.

    folder_name: "loras" or "inversions". name, node: see `free_path`.
    """
    folder = Path(folder_paths.get_folder_paths(folder_name)[0])
    path = free_path(folder, name, node)
    return path, path.relative_to(folder).as_posix()


def free_path(folder: Path, name: str, node: str, endings: Sequence[str] = (".safetensors",)) -> Path:
    """Choose a path below `folder` that is not taken: name.safetensors, else name_2.safetensors, and so on.

    name: a file name, with folders or without. node: the node that asks, for messages. endings: of the files that are
    to be written; none of them is taken, and the path has the first.
    Raises ValueError for an empty name, one that leads out of the folder, or one that is too long for a file there.
    """
    wanted = name.strip().replace("\\", "/").removesuffix(endings[0])
    if not wanted or wanted.endswith("/") or "\0" in wanted:
        raise ValueError(f"{node} needs a file name; got {name!r}.")
    path = folder / f"{wanted}{endings[0]}"
    if ".." in Path(wanted).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"The name {name!r} leads out of {folder}; choose one inside it.")
    stem, number = wanted, 2
    check_length(path)
    while any((folder / f"{stem}{ending}").exists() for ending in endings):
        stem, number = f"{wanted}_{number}", number + 1
        check_length(folder / f"{stem}{endings[0]}")
    return folder / f"{stem}{endings[0]}"


def free_folder(root: Path, name: str, node: str) -> Path:
    """Choose a folder below `root` that is not there: name, else name_2, and so on; see `free_path`."""
    return free_path(root, name.strip().rstrip("/\\"), node, ("",))


def name_fault(folder_name: str, name: str | None, node: str) -> bool | str:
    """Return what is wrong with the name of a file that a node is to write, or True: before anything runs.

    name: None, or blank, where another name takes its place that is known by then. folder_name, node: see
    `output_path`.
    """
    try:
        if name and name.strip():
            output_path(folder_name, name, node)
    except ValueError as error:
        return str(error)
    return True
