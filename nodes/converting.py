"""Nodes that put sliders into other forms: under another tool's layer names, and several as one."""

from __future__ import annotations

from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..comfy_host.layer_conversion import converted_layers
from ..comfy_host.model_weights import ComfyModelWeights
from ..sliders.changes import kind_of
from ..sliders.formats.conventions import CONVENTIONS, tensors_in
from ..sliders.formats.layer_names import listed
from ..sliders.formats.slider_files import save_slider
from ..sliders.merge_sliders import Merged, merged_stack
from ..sliders.slider import Slider
from ..sliders.stack import Stack
from .loading import DTYPES, FILE_NAME_TOOLTIP, as_one_slider, precision_input
from .model_folders import name_fault
from .report import REPORTS, Report
from .sockets import Sliders


class ConvertSlider(io.ComfyNode):
    """Writes a slider under another tool's layer names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersConvertSlider",
            display_name="Convert Slider",
            category="sliders",
            search_aliases=["lora", "convert", "kohya", "diffusers"],
            description="Writes a slider to models/loras under the layer names that another tool reads.",
            inputs=[
                Sliders.Input("sliders", tooltip="A stack of one slider. Its strength becomes part of its weights."),
                io.Combo.Input(
                    "names",
                    options=list(CONVENTIONS),
                    default=CONVENTIONS[1],
                    tooltip="kohya: lora_unet_..., for A1111, Forge and most others. diffusers: unet... or "
                    "transformer.... diffusion_model.: the model's own names, as ai-toolkit writes them.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="the slider's own name",
                    tooltip=FILE_NAME_TOOLTIP,
                ),
                precision_input(),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the slider is for; needed where the old names alone do not tell the new "
                    "ones.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="file")],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_fault("loras", name, "Convert Slider")

    @classmethod
    def execute(
        cls, sliders: Stack, names: str, name: str, precision: str, model: ModelPatcher | None = None
    ) -> io.NodeOutput:
        path, file, slider, lost = as_one_slider(sliders, name, "Convert Slider")
        converted = Slider(path.stem, converted_layers(slider, names, model), slider.info)
        save_slider(converted, path, DTYPES[precision], partial(tensors_in, names))
        text = f"{len(converted.layers)} layers, such as {next(iter(converted.layers))}; saved as {file}"
        return io.NodeOutput(Stack.of(converted), file, ui=Report().fact(text).warn(lost).on_node())


class MergeSliders(io.ComfyNode):
    """Merges a stack into one slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersMergeSliders",
            display_name="Merge Sliders",
            category="sliders",
            search_aliases=["lora", "merge", "combine", "resize"],
            description="A stack at its strengths as one slider: exactly, or at a smaller rank.",
            inputs=[
                Sliders.Input(
                    "sliders", tooltip="Sliders at one strength each, all with the same gate or all without one."
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="0 keeps everything: the ranks add up. Otherwise the best approximation of that rank, "
                    "layer by layer; layers that are no low-rank products stay as they are.",
                ),
                io.String.Input("name", default="merged", tooltip="The name of the slider that comes out."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the sliders are for. With it two names of one layer are merged, and "
                    "changes of any kinds: LoHa, DoRA and the like become differences of its weights.",
                ),
            ],
            outputs=[
                Sliders.Output(display_name="sliders"),
                io.Float.Output(
                    display_name="error", tooltip="What was left out, relative to the whole change; 0 is exact."
                ),
            ],
            **REPORTS,
        )

    @classmethod
    def execute(cls, sliders: Stack, rank: int, name: str, model: ModelPatcher | None = None) -> io.NodeOutput:
        stack, merged = merged_stack(sliders, rank, name, None if model is None else ComfyModelWeights(model))
        kept = f"rank {merged.rank}" if merged.rank else "no rank"
        exactly = f"relative error {merged.error:.3g}" if rank else "exact"
        text = f"{len(sliders)} sliders in {len(merged.layers)} layers, {kept}, {exactly}"
        return io.NodeOutput(stack, merged.error, ui=Report().fact(text).warn(_left_whole(merged)).on_node())


def _left_whole(merged: Merged) -> str:
    """A warning about the layers that were not compressed to the rank; "" if there are none."""
    if not merged.uncompressed:
        return ""
    kinds = ", ".join(sorted({kind_of(merged.layers[name]) for name in merged.uncompressed}))
    return (
        f"Not compressed, and not in the error: {len(merged.uncompressed)} of the layers, which are no low-rank "
        f"products ({kinds}): {listed(merged.uncompressed, most=5)}"
    )
