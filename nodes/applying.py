"""Nodes that let sliders act on a model, and show the images of a sweep side by side."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io, ui
from torch import Tensor

from ..comfy_host.apply import apply_sliders
from ..comfy_host.mode_choice import MODES
from ..comfy_host.text_encoders import apply_to_clip
from ..sliders.stack import Stack
from ..sliders.units import RAW
from .composing import units_input
from .image_strip import draw_strip, strip_labels
from .report import REPORTS, Report
from .resume_notes import node_id_of
from .run_progress import warner
from .slider_reports import matched
from .sockets import Sliders


class ApplySliders(io.ComfyNode):
    """Applies a stack to a model, and to its text encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersApplySliders",
            display_name="Apply Sliders",
            category="sliders",
            search_aliases=["lora", "slider", "concept slider"],
            description="Applies a stack of sliders to a model while it samples. The model's weights are not "
            "changed; sliders at strength 0 or outside their gate cost nothing.",
            inputs=[
                io.Model.Input("model"),
                Sliders.Input("sliders"),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    optional=True,
                    advanced=True,
                    tooltip="merged: merged weights replace the model's while it runs; takes memory, and nothing per "
                    "step. unmerged: two low-rank products are added to each layer; costs a little in every step, "
                    "and no memory. auto: chooses by memory, strengths and gates.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Only for sliders that also change the text encoder."),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
            hidden=[io.Hidden.unique_id],
            **REPORTS,
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, sliders: Stack, mode: str = MODES[0], clip: CLIP | None = None
    ) -> io.NodeOutput:
        applied = apply_sliders(model, sliders, mode, warner(node_id_of(cls)))
        report = sum((matched(model, stacked, clip) for stacked in sliders), Report())
        return io.NodeOutput(applied, clip and apply_to_clip(clip, sliders), ui=report.on_node())


class SliderStrip(io.ComfyNode):
    """Draws the images of a sweep as one strip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSliderStrip",
            display_name="Slider Strip",
            category="sliders",
            description="The images of a sweep side by side, with their strengths above them: one row for each "
            "latent that was swept.",
            inputs=[
                io.Image.Input("images", tooltip="The decoded images, in the order of the sweep."),
                Sliders.Input("sliders", optional=True, tooltip="The swept sliders: their strengths are the labels."),
                io.String.Input(
                    "labels",
                    default="",
                    optional=True,
                    tooltip="Labels of the columns, separated by commas, instead of the strengths.",
                ),
                io.Int.Input(
                    "image_width",
                    default=192,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Width of one image in the strip, in pixels.",
                ),
                units_input(" The labels are in them."),
            ],
            outputs=[io.Image.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, image_width: int, sliders: Stack | None = None, labels: str = "", units: str = RAW
    ) -> io.NodeOutput:
        strip = draw_strip(images, *strip_labels(sliders, labels, images.shape[0], units), image_width)
        return io.NodeOutput(strip, ui=ui.PreviewImage(strip, cls=cls))
