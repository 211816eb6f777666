"""Slider files and inversion files by the names that ComfyUI's model folders list them under.

Sliders are in the folders `sliders` and `loras` and in the pack, inversions in `inversions`. Importing this module
registers `sliders` and `inversions` with ComfyUI.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths

SHIPPED = Path(__file__).parent.parent / "pocket" / "sliders"
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
_FOLDERS = ("sliders", "loras")  # a name in both is the file in `sliders`
_HIDDEN = "loras/"  # prefix of the file in `loras` whose name one in `sliders` has too

folder_paths.add_model_folder_path("sliders", str(Path(folder_paths.models_dir) / "sliders"), is_default=True)
folder_paths.add_model_folder_path("sliders", str(SHIPPED))
# Without endings ComfyUI's list of models would show the preview images beside the sliders too
_paths, _ = folder_paths.folder_names_and_paths["sliders"]
folder_paths.folder_names_and_paths["sliders"] = (_paths, set(folder_paths.supported_pt_extensions))

folder_paths.add_model_folder_path("inversions", str(Path(folder_paths.models_dir) / "inversions"), is_default=True)
folder_paths.folder_names_and_paths["inversions"] = (folder_paths.get_folder_paths("inversions"), {".safetensors"})


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


def output_path(folder_name: str, name: str, node: str) -> tuple[Path, str]:
    """Choose where a node writes a file: its path in one of ComfyUI's model folders, and its name below that folder.

    folder_name: "loras" or "inversions". name, node: see `free_path`.
    """
    folder = Path(folder_paths.get_folder_paths(folder_name)[0])
    path = free_path(folder, name, node)
    return path, path.relative_to(folder).as_posix()


def free_path(folder: Path, name: str, node: str) -> Path:
    """Choose a path below `folder` that is not taken: name.safetensors, else name_2.safetensors, and so on.

    name: a file name, with folders or without. node: the node that asks, for messages.
    Raises ValueError for an empty name or one that leads out of the folder.
    """
    wanted = name.strip().replace("\\", "/").removesuffix(".safetensors")
    if not wanted or wanted.endswith("/") or "\0" in wanted:
        raise ValueError(f"{node} needs a file name; got {name!r}.")
    path = folder / f"{wanted}.safetensors"
    if ".." in Path(wanted).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"The name {name!r} leads out of {folder}; choose one inside it.")
    number = 2
    while path.exists():
        path = folder / f"{wanted}_{number}.safetensors"
        number += 1
    return path
