"""Nodes that read and write slider files."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..sliders.formats.peft import config_beside
from ..sliders.formats.slider_files import read_slider, save_slider
from ..sliders.slider import Slider
from ..sliders.stack import Stack
from ..sliders.units import RAW, strengths_in, unit_notes
from ..training.resume import plain_name
from .composing import STRENGTH_TOOLTIP, units_input
from .model_folders import find_slider, name_fault, output_path, slider_names, stamp
from .report import REPORTS, Report
from .slider_reports import calibrated_gate, described
from .sockets import Sliders

FILE_NAME_TOOLTIP = (
    "File name, with folders if you like. Empty takes the slider's own name, in the folder sliders. A number is "
    "added rather than overwriting a file."
)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def precision_input(advanced: bool = False) -> io.Input:
    """Return the input that says in which number format weights are written."""
    return io.Combo.Input(
        "precision",
        options=list(DTYPES),
        default="float16",
        advanced=advanced or None,
        tooltip="Number format of the weights in the file; half precision is enough for sliders.",
    )


class LoadSlider(io.ComfyNode):
    """Reads a slider from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadSlider",
            display_name="Load Slider",
            category="sliders",
            search_aliases=["lora", "slider", "concept slider"],
            description="A slider from a file in models/loras or models/sliders. The node shows what the file holds.",
            inputs=[
                io.Combo.Input("slider", options=slider_names(), tooltip="The slider's file."),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
                io.Boolean.Input(
                    "gated",
                    default=False,
                    optional=True,
                    tooltip="Apply the gate that the file names, if it names one: the part of sampling that it is "
                    "meant for.",
                ),
                units_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(
        cls, slider: str, strength: float, gated: bool = False, units: str = RAW
    ) -> tuple[object, ...]:
        path = find_slider(slider)
        files = (path, config_beside(path))  # a change of either is another slider
        return tuple(file and stamp(file) for file in files), strength, gated, units

    @classmethod
    def execute(cls, slider: str, strength: float, gated: bool = False, units: str = RAW) -> io.NodeOutput:
        path = find_slider(slider)
        loaded, report = read_slider(path)
        about = described(loaded, report, path.stat().st_size, gated)
        about = about.warn(*unit_notes(units, loaded, [strength]), *calibrated_gate(units, loaded, gated))
        return io.NodeOutput(as_loaded(loaded, strength, gated, units), ui=about.on_node())


def as_loaded(slider: Slider, strength: float, gated: bool, units: str) -> Stack:
    """Return a stack of a slider from a file. gated: behind the gate that the file names, if it names one."""
    return Stack.of(slider, strengths_in(units, slider, [strength]), slider.info.gate if gated else None)


class SaveSlider(io.ComfyNode):
    """Writes a slider to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSaveSlider",
            display_name="Save Slider",
            category="sliders",
            description="Writes a slider to models/loras, where Load Slider and the stock LoRA loader find it. A "
            "strength other than 1 becomes part of its weights; a gate is written into the file.",
            inputs=[
                Sliders.Input("sliders", tooltip="A stack of one slider."),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="the slider's own name",
                    tooltip=FILE_NAME_TOOLTIP,
                ),
                precision_input(advanced=True),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="file")],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_fault("loras", name, "Save Slider")

    @classmethod
    def execute(cls, sliders: Stack, name: str, precision: str) -> io.NodeOutput:
        path, file, slider, lost = as_one_slider(sliders, name, "Save Slider")
        save_slider(slider, path, DTYPES[precision])
        return io.NodeOutput(sliders, file, ui=saved(slider, file).warn(lost).on_node())


def as_one_slider(sliders: Stack, name: str, node: str) -> tuple[Path, str, Slider, str]:
    """Turn a stack of one slider into a slider for a file: its strength in its weights, its gate in its header.

    name: of the file, as the user gives it; empty takes the slider's own. node: the node that asks, for messages.
    Returns the file's path, its name below models/loras, the slider, which has the file's name, and a warning about
    what a file cannot hold of it; "" if nothing is lost.
    Raises ValueError for any other number of sliders, for one that is swept or at strength 0, and for a name that no
    file can have.
    """
    if len(sliders) != 1:
        raise ValueError(
            f"{node} takes one slider; this stack has {len(sliders)}. Pick Slider takes one out of a stack, Merge "
            "Sliders makes one of all."
        )
    if sliders[0].is_zero:
        raise ValueError(
            f"{node}: slider '{sliders[0].slider.name}' is at strength 0, and its file would do nothing. Give it a "
            "strength; Pick Slider does so for those of Discover Sliders."
        )
    own = f"sliders/{plain_name(sliders[0].slider.name)}"
    path, file = output_path("loras", name if name.strip() else own, node)
    slider, lost = sliders[0].as_slider(path.stem)
    return path, file, slider, f"Not stored, set it again after loading: {'; '.join(lost)}" if lost else ""


def saved(slider: Slider, file: str) -> Report:
    """Report that a slider was saved; a warning, if its training was stopped before its end."""
    steps, done = (slider.info.recipe.get(key) for key in ("steps", "steps_done"))
    if done and steps and done < steps:
        return Report().warn(f"stopped at step {done} of {steps}, saved as {file}")
    return Report().fact(f"saved as {file}")
