"""Where files lie: sliders in ComfyUI's folders `sliders` and `loras` and in the pack, inversions in `inversions`."""

from __future__ import annotations

from pathlib import Path

import folder_paths

SHIPPED = Path(__file__).parent.parent / "pocket" / "sliders"
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
_KINDS = ("sliders", "loras")
_HIDDEN = "loras/"  # how a file in `loras` begins whose name one in `sliders` has too

folder_paths.add_model_folder_path("sliders", str(Path(folder_paths.models_dir) / "sliders"), is_default=True)
folder_paths.add_model_folder_path("sliders", str(SHIPPED))
# Otherwise ComfyUI's own list of models shows the pictures beside them too
_PLACES, _ = folder_paths.folder_names_and_paths["sliders"]
folder_paths.folder_names_and_paths["sliders"] = (_PLACES, set(folder_paths.supported_pt_extensions))

folder_paths.add_model_folder_path("inversions", str(Path(folder_paths.models_dir) / "inversions"), is_default=True)
folder_paths.folder_names_and_paths["inversions"] = (folder_paths.get_folder_paths("inversions"), {".safetensors"})


def slider_names() -> list[str]:
    """Files of the `sliders` and `loras` folders; a name in both is twice there, as NAME and as loras/NAME."""
    ours, theirs = (
        {name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(ENDINGS)} for kind in _KINDS
    )
    return sorted({*ours, *(f"{_HIDDEN}{name}" if name in ours else name for name in theirs)})


def find_slider(name: str) -> Path:
    """The file of one of the `slider_names`. Raises FileNotFoundError, saying where it looked."""
    places = [(kind, name) for kind in _KINDS]
    if name.startswith(_HIDDEN):
        places.append(("loras", name.removeprefix(_HIDDEN)))
    for kind, file in places:
        if path := folder_paths.get_full_path(kind, file):
            return Path(path)
    folders = [p for kind in _KINDS for p in folder_paths.get_folder_paths(kind)]
    raise FileNotFoundError(f"There is no slider file {name!r} in {', '.join(folders)}.")


def free_path(folder: Path, name: str, node: str) -> Path:
    """A path below `folder` that is not taken: name.safetensors, else name_2.safetensors, and so on.

    node: whose name it is, for messages.
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


def inversion_names() -> list[str]:
    """Files of the `inversions` folder."""
    return folder_paths.get_filename_list("inversions")


def find_inversion(name: str) -> Path:
    """The file of one of the `inversion_names`. Raises FileNotFoundError, saying where it looked."""
    if path := folder_paths.get_full_path("inversions", name):
        return Path(path)
    raise FileNotFoundError(
        f"There is no inversion file {name!r} in {', '.join(folder_paths.get_folder_paths('inversions'))}."
    )
