"""Slider files in and out."""

from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..sliders.family import family_of
from ..sliders.files import read_slider, save_slider
from ..sliders.formats import FileReport
from ..sliders.slider import Slider
from ..sliders.stack import Placed, Stack
from .composing import STRENGTH_TOOLTIP
from .sockets import Sliders

SHIPPED = Path(__file__).parent.parent / "pocket" / "sliders"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")

folder_paths.add_model_folder_path("sliders", str(Path(folder_paths.models_dir) / "sliders"), is_default=True)
folder_paths.add_model_folder_path("sliders", str(SHIPPED))


class LoadSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadSlider",
            display_name="Load Slider",
            category="sliders",
            search_aliases=["lora", "slider", "concept slider"],
            description="A slider from a file in models/loras or models/sliders. It shows what the file holds.",
            inputs=[
                io.Combo.Input("slider", options=slider_names(), tooltip="The slider's file."),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def fingerprint_inputs(cls, slider: str, strength: float):
        return find_slider(slider).stat().st_mtime_ns, strength

    @classmethod
    def execute(cls, slider: str, strength: float) -> io.NodeOutput:
        path = find_slider(slider)
        loaded, report = read_slider(path)
        text = described(loaded, report, path.stat().st_size)
        return io.NodeOutput(Stack.of(loaded, strength), ui=ui.PreviewText(text))


class SaveSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSaveSlider",
            display_name="Save Slider",
            category="sliders",
            description="Writes a slider to models/loras, where Load Slider and the stock LoRA loader find it. A "
            "strength other than 1 becomes part of its weights; a gate is noted in the file.",
            inputs=[
                Sliders.Input("sliders", tooltip="A stack of one slider."),
                io.String.Input(
                    "name",
                    default="sliders/my_slider",
                    tooltip="File name, with folders if you like. A number is added rather than overwriting a file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(DTYPES),
                    default="float16",
                    advanced=True,
                    tooltip="How the numbers are stored; half precision is enough for sliders.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sliders: Stack, name: str, precision: str) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        path = free_path(folder, name, "Save Slider")
        save_slider(as_one_slider(sliders, path.stem, "Save Slider"), path, DTYPES[precision])
        file = path.relative_to(folder).as_posix()
        return io.NodeOutput(sliders, file, ui=ui.PreviewText(f"Saved {file}"))


def slider_names() -> list[str]:
    """Files of the `sliders` and `loras` folders; a name in both means the one in `sliders`."""
    names = {name for kind in ("sliders", "loras") for name in folder_paths.get_filename_list(kind)}
    return sorted(name for name in names if name.endswith(ENDINGS))


def find_slider(name: str) -> Path:
    """Raises FileNotFoundError, saying where it looked."""
    for kind in ("sliders", "loras"):
        if path := folder_paths.get_full_path(kind, name):
            return Path(path)
    places = [p for kind in ("sliders", "loras") for p in folder_paths.get_folder_paths(kind)]
    raise FileNotFoundError(f"There is no slider file {name!r} in {', '.join(places)}.")


def described(slider: Slider, report: FileReport, size: int) -> str:
    """What a slider file holds, in a few lines. size: of the file, in bytes."""
    family = slider.info.family or family_of(slider.layers)
    kinds = ", ".join(f"{count} x {kind}" for kind, count in report.kinds.items())
    if report.alphas:
        alpha = "alpha " + _span(report.alphas) + (" or none" if report.without_alpha else "")
    else:
        alpha = "no alpha (scale 1)"
    lines = [
        f"{slider.name}: {family}",
        f"{len(slider.layers)} layers: {len(slider.model_layers)} of the model, "
        f"{len(slider.text_layers)} of text encoders",
        f"{kinds}; rank {_span(report.ranks) if report.ranks else 'none'}, {alpha}",
        f"{', '.join(report.dtypes) or 'no weights'}, {size / 1e6:.2f} MB",
        *report.notes,
    ]
    return "\n".join(lines)


def _span(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


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


def as_one_slider(sliders: Stack, name: str, node: str) -> Slider:
    """The stack's only slider, with its strength in its weights and its gate in its description.

    node: who asks, for messages.
    Raises ValueError for any other number of sliders, or a swept one.
    """
    if len(sliders) != 1:
        raise ValueError(f"{node} takes one slider; this stack has {len(sliders)}. Do it one by one, or merge them.")
    placed: Placed = sliders[0]
    if len(set(placed.strength)) > 1:
        raise ValueError(f"Slider '{placed.slider.name}' is swept; take it as it is before the sweep.")
    slider, strength = placed.slider, placed.strength[0]
    layers = slider.layers
    if strength != 1:
        layers = {name: change.scaled(strength) for name, change in layers.items()}
    info = replace(slider.info, gate=placed.gates[0]) if len(placed.gates) == 1 else slider.info
    return Slider(name, layers, info)
