"""Nodes for image pairs: from two batches, or from a folder in ComfyUI's input folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..training.pairs.file_names import parse_marks
from ..training.pairs.folder_list import find_folder, fingerprint, image_folders
from ..training.pairs.folders import left_out, read_pairs
from ..training.pairs.image_sets import STEP, ImagePairs, pairs_from_batches, prepare
from .image_strip import contact_sheet
from .report import REPORTS, Report
from .sockets import ImagePairsSocket

SHIPPED = Path(__file__).parent.parent / "pocket" / "pairs"

SIZE_TOOLTIP = (
    "Side in pixels of a square with the area that images are trained at. Images of another shape keep it at about "
    "that area: they are scaled down and cropped a little, never stretched or enlarged."
)
MULTIPLE_TOOLTIP = "Widths and heights are multiples of this many pixels. 64 suits every model."


def size_inputs() -> list[io.Input]:
    """Return the inputs that say at what size images are trained."""
    return [
        io.Int.Input("size", default=512, min=16, max=4096, step=8, tooltip=SIZE_TOOLTIP),
        io.Int.Input("multiple", default=STEP, min=8, max=128, step=8, advanced=True, tooltip=MULTIPLE_TOOLTIP),
    ]


def pair_outputs() -> list[io.Output]:
    """Return the outputs of both nodes for image pairs."""
    return [
        ImagePairsSocket.Output(display_name="pairs", tooltip="For Train Visual Slider."),
        io.Image.Output(display_name="preview", tooltip="A row for each pair, a column for each strength."),
    ]


class ImagePairsNode(io.ComfyNode):
    """Makes image pairs of two batches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersImagePairs",
            display_name="Image Pairs",
            category="sliders/training",
            search_aliases=["visual slider", "image slider", "before after"],
            description="Images of the same scenes with less and with more of an attribute, to train a visual slider "
            "on. The first image of one batch belongs to the first of the other, and so on; 4 to 6 pairs are enough.",
            inputs=[
                io.Image.Input("less", tooltip="With little of the attribute: strength -1."),
                io.Image.Input("more", tooltip="With much of it: strength +1. As many images, of the same size."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the images show, or a word for the region, such as 'eye'. May be empty.",
                ),
                *size_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Limits the loss to its white parts. One for all pairs or one for each, of the images' "
                    "size.",
                ),
                ImagePairsSocket.Input("previous_pairs", optional=True, tooltip="Pairs that these are added to."),
            ],
            outputs=pair_outputs(),
            **REPORTS,
        )

    @classmethod
    def execute(
        cls,
        less: Tensor,
        more: Tensor,
        prompt: str,
        size: int,
        multiple: int = STEP,
        mask: Tensor | None = None,
        previous_pairs: ImagePairs | None = None,
    ) -> io.NodeOutput:
        pairs = pairs_from_batches(less, more, mask, prompt.strip())
        prepared = tuple(prepare(one, size, multiple) for one in pairs)
        return _with_preview(cls, ImagePairs((*(previous_pairs or ()), *prepared)), Report())


class ImagePairsFromFolder(io.ComfyNode):
    """Reads image pairs from a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersImagePairsFromFolder",
            display_name="Image Pairs from Folder",
            category="sliders/training",
            search_aliases=["visual slider", "image slider", "stylegan", "gan edits", "dataset"],
            description="Images of the same scenes at several strengths, from a folder in ComfyUI's input folder: "
            "subfolders less and more, subfolders -2, -1, 1, 2, or files such as seed0042_-2.png. The help page has "
            "the rules.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_names(),
                    tooltip="A folder in input/, or pocket_shirt, which comes with the pack.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the images show, for scenes without a .txt file beside them. May be empty.",
                ),
                *size_inputs(),
                io.String.Input(
                    "strengths",
                    default="",
                    advanced=True,
                    tooltip="Strengths of names that are no numbers, such as 'smallsize=-1, bigsize=1': of "
                    "subfolders, or of the last parts of file names.",
                ),
                io.Float.Input(
                    "max_strength",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Scales all strengths so that the largest, up or down, is this. 2 suits a GAN's edits "
                    "at distances of -20 to 20. 0 leaves them as they are.",
                ),
            ],
            outputs=pair_outputs(),
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others: object) -> tuple[object, ...]:
        return fingerprint(_folder(folder)), *others.values()

    @classmethod
    def execute(
        cls, folder: str, prompt: str, size: int, multiple: int = STEP, strengths: str = "", max_strength: float = 0.0
    ) -> io.NodeOutput:
        path = _folder(folder)
        pairs = read_pairs(path, parse_marks(strengths), prompt.strip(), size, multiple)
        report = Report().warn(left_out(path))
        return _with_preview(cls, pairs.scaled_to(max_strength) if max_strength else pairs, report)


def input_folder() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def folder_names() -> list[str]:
    """List the folders of the input folder, then the pairs that come with the pack where no folder has their name."""
    own = image_folders(input_folder())
    return [*own, *sorted(_shipped() - {*own})]


def _shipped() -> set[str]:
    return {path.name for path in SHIPPED.iterdir() if path.is_dir()}


def _folder(name: str) -> Path:
    is_shipped = name in _shipped() and name not in image_folders(input_folder())
    return SHIPPED / name if is_shipped else find_folder(input_folder(), name)


def _with_preview(cls: type[io.ComfyNode], pairs: ImagePairs, report: Report) -> io.NodeOutput:
    """Return the pairs and their contact sheet, which the node shows as well, above what is to be said."""
    sheet = contact_sheet(pairs)
    return io.NodeOutput(pairs, sheet, ui=report.on_node(ui.PreviewImage(sheet, cls=cls)))
