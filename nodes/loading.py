"""Nodes that read and write slider files."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..sliders.formats.peft import config_beside
from ..sliders.formats.slider_files import read_slider, save_slider
from ..sliders.slider import Slider
from ..sliders.stack import Stack
from .composing import STRENGTH_TOOLTIP
from .model_folders import find_slider, output_path, slider_names
from .slider_reports import described
from .sockets import Sliders

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
                io.Boolean.Input(
                    "gated",
                    default=False,
                    optional=True,
                    tooltip="Apply the gate that the file names, if it names one: the part of sampling that it is "
                    "meant for.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def fingerprint_inputs(cls, slider: str, strength: float, gated: bool = False) -> tuple[object, ...]:
        path = find_slider(slider)
        files = (path, config_beside(path))  # a change of either is another slider
        return tuple(file and file.stat().st_mtime_ns for file in files), strength, gated

    @classmethod
    def execute(cls, slider: str, strength: float, gated: bool = False) -> io.NodeOutput:
        path = find_slider(slider)
        loaded, report = read_slider(path)
        text = described(loaded, report, path.stat().st_size, gated)
        gate = loaded.info.gate if gated and not loaded.info.gate.always_open else None
        return io.NodeOutput(Stack.of(loaded, strength, gate), ui=ui.PreviewText(text))


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
                    default="sliders/my_slider",
                    tooltip="File name, with folders if you like. A number is added rather than overwriting a file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(DTYPES),
                    default="float16",
                    advanced=True,
                    tooltip="Number format of the weights in the file; half precision is enough for sliders.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sliders: Stack, name: str, precision: str) -> io.NodeOutput:
        path, file = output_path("loras", name, "Save Slider")
        slider, lost = as_one_slider(sliders, path.stem, "Save Slider")
        save_slider(slider, path, DTYPES[precision])
        return io.NodeOutput(sliders, file, ui=ui.PreviewText(f"Saved {file}{lost}"))


def as_one_slider(sliders: Stack, name: str, node: str) -> tuple[Slider, str]:
    """Turn a stack of one slider into a slider for a file: its strength in its weights, its gate in its header.

    node: the node that asks, for messages.
    Returns the slider, and a line to show about what a file cannot hold of it; "" if nothing is lost.
    Raises ValueError for any other number of sliders, or a swept one.
    """
    if len(sliders) != 1:
        raise ValueError(f"{node} takes one slider; this stack has {len(sliders)}. Do it one by one, or merge them.")
    slider, lost = sliders[0].as_slider(name)
    return slider, f"\nNot stored, set it again after loading: {'; '.join(lost)}" if lost else ""
