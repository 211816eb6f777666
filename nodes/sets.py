"""Nodes that write a stack of sliders into a folder, a file each, and read such a folder as a stack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..sliders.formats.slider_files import load_slider
from ..sliders.formats.slider_sets import save_set
from ..sliders.slider import Slider
from ..sliders.stack import Stack
from ..sliders.units import RAW, unit_notes
from ..training.resume import plain_name
from .composing import units_input
from .loading import DTYPES, as_loaded, precision_input
from .model_folders import find_slider, free_folder, name_fault, slider_names, stamp
from .report import REPORTS, Report
from .slider_reports import ends_of
from .sockets import Sliders

NAME_TOOLTIP = (
    "Of the folder, with folders before it if you like. Empty takes what the sliders' names have in common, in the "
    "folder sliders. A number is added rather than writing into a folder that is there."
)


class SaveSliderSet(io.ComfyNode):
    """Writes all sliders of a stack into a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSaveSliderSet",
            display_name="Save Slider Set",
            category="sliders",
            search_aliases=["save directions", "save stack", "slider folder"],
            description="Writes all sliders of a stack, such as that of Discover Sliders, into a folder in "
            "models/loras, a file each, as they are at strength 1. Load Slider Set makes a stack of them again.",
            inputs=[
                Sliders.Input("sliders", tooltip="A stack of one slider or more; their strengths do not matter."),
                io.String.Input(
                    "name", default="", placeholder="what the sliders' names have in common", tooltip=NAME_TOOLTIP
                ),
                precision_input(advanced=True),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="folder")],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_fault("loras", name, "Save Slider Set")

    @classmethod
    def execute(cls, sliders: Stack, name: str, precision: str) -> io.NodeOutput:
        if not len(sliders):
            raise ValueError("Save Slider Set: the stack is empty; there is nothing to save.")
        names = [each.slider.name for each in sliders]
        root = Path(folder_paths.get_folder_paths("loras")[0])
        folder = free_folder(root, name if name.strip() else f"sliders/{common_name(names)}", "Save Slider Set")
        whole, notes = zip(*(at_full_strength(sliders, place) for place in range(len(sliders))))
        save_set(whole, [plain_name(each) for each in names], folder, DTYPES[precision])
        file = folder.relative_to(root).as_posix()
        report = Report().fact(f"{len(whole)} sliders saved in {file}").warn(*(note for note in notes if note))
        return io.NodeOutput(sliders, file, ui=report.on_node())


class LoadSliderSet(io.ComfyNode):
    """Reads all sliders of a folder as a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadSliderSet",
            display_name="Load Slider Set",
            category="sliders",
            search_aliases=["load directions", "load stack", "slider folder"],
            description="All sliders of a folder in models/loras or models/sliders as one stack, in the order of "
            "their files' names. Pick Slider takes one of them out.",
            inputs=[
                io.Combo.Input("folder", options=list(slider_sets()), tooltip="The folder with the sliders' files."),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Of all of them: 0 is off, for Pick Slider or Sweep Sliders to turn one of them.",
                ),
                io.Boolean.Input(
                    "gated",
                    default=True,
                    optional=True,
                    tooltip="Apply the gates that the files name: the part of sampling that each is meant for.",
                ),
                units_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str, strength: float = 0.0, gated: bool = True, units: str = RAW
    ) -> tuple[object, ...]:
        return tuple((file, stamp(find_slider(file))) for file in files_of(folder)), strength, gated, units

    @classmethod
    def execute(cls, folder: str, strength: float, gated: bool = True, units: str = RAW) -> io.NodeOutput:
        stack, report = Stack(), Report()
        for place, file in enumerate(files_of(folder), 1):
            slider = load_slider(find_slider(file))
            stack += as_loaded(slider, strength, gated, units)
            report = report.fact(", ".join((f"{place} {slider.name}", *ends_of(slider.info))))
            report = report.warn(*unit_notes(units, slider, [strength]))
        return io.NodeOutput(stack, ui=report.on_node())


def slider_sets() -> dict[str, list[str]]:
    """Return the folders that slider files lie in, by name, and the names of their files, in order."""
    found: dict[str, list[str]] = {}
    for name in slider_names():
        folder, _, _ = name.replace("\\", "/").rpartition("/")
        if folder and folder != "loras":  # a prefix of files, not a folder
            found.setdefault(folder, []).append(name)
    return found


def files_of(folder: str) -> list[str]:
    """Return the names of a folder's slider files, in order. Raises FileNotFoundError that names the folder."""
    sets = slider_sets()
    if folder not in sets:
        raise FileNotFoundError(f"There is no folder of sliders {folder!r} in models/sliders or models/loras.")
    return sets[folder]


def common_name(names: Sequence[str]) -> str:
    """Return the words that all names begin with, as a folder may be called; of one slider its own name."""
    words = takewhile(lambda each: len(set(each)) == 1, zip(*(name.split() for name in names)))
    return plain_name(" ".join(word for word, *_ in words)) or "set"


def at_full_strength(sliders: Stack, place: int) -> tuple[Slider, str]:
    """Return a slider of a stack for a file, at strength 1, and what no file can hold of it, or ""."""
    one = sliders.picked(place, 1.0)[0]
    slider, lost = one.as_slider(one.slider.name)
    return slider, f"{slider.name}: not stored, set it again after loading: {'; '.join(lost)}" if lost else ""
