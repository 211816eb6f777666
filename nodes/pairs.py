"""Image pairs for a visual slider: from two batches, or from a folder in ComfyUI's input folder."""

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..training.pairs.file_names import parse_marks
from ..training.pairs.folder_list import find_folder, fingerprint, picture_folders
from ..training.pairs.folders import read_pairs
from ..training.pairs.image_sets import STEP, ImagePairs, ImageSet, cover, pairs_from_batches, prepare
from .sockets import ImagePairsSocket
from .strip import BACKGROUND, draw_strip

SHIPPED = Path(__file__).parent.parent / "pocket" / "pairs"
CELL = 160  # pixels of one picture in the contact sheet
ROWS = 24  # of the contact sheet at most
OUTSIDE = 0.3  # how bright the sheet shows what the mask leaves out

SIZE_TOOLTIP = (
    "Side in pixels of a square as large as the pictures to train at. Others keep their shape at about that area; "
    "they are scaled down and cropped a little, and never stretched or enlarged."
)
STEP_TOOLTIP = "Sizes are multiples of this. 64 suits every model."


def size_inputs() -> list:
    return [
        io.Int.Input("size", default=512, min=16, max=4096, step=8, tooltip=SIZE_TOOLTIP),
        io.Int.Input("multiple", default=STEP, min=8, max=128, step=8, advanced=True, tooltip=STEP_TOOLTIP),
    ]


def pair_outputs() -> list:
    return [ImagePairsSocket.Output(display_name="pairs"), io.Image.Output(display_name="preview")]


class ImagePairsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersImagePairs",
            display_name="Image Pairs",
            category="sliders/training",
            search_aliases=["visual slider", "image slider", "before after"],
            description="Pictures of the same scenes with less and with more of an attribute, to train a slider on. "
            "The first picture of one batch belongs to the first of the other, and so on; 4 to 6 pairs are enough.",
            inputs=[
                io.Image.Input("less", tooltip="With little of the attribute: strength -1."),
                io.Image.Input("more", tooltip="With much of it: strength +1. As many, and of the same size."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the pictures show, or a word for the region, such as 'eye'. May be empty.",
                ),
                *size_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to learn: white. One for all pairs, or one each, of the pictures' size.",
                ),
                ImagePairsSocket.Input("previous_pairs", optional=True, tooltip="Pairs to put these after."),
            ],
            outputs=pair_outputs(),
        )

    @classmethod
    def execute(
        cls,
        less,
        more,
        prompt: str,
        size: int,
        multiple: int = STEP,
        mask=None,
        previous_pairs: ImagePairs | None = None,
    ) -> io.NodeOutput:
        pairs = pairs_from_batches(less, more, mask, prompt.strip())
        prepared = tuple(prepare(one, size, multiple) for one in pairs)
        return shown(cls, ImagePairs((*(previous_pairs or ()), *prepared)))


class ImagePairsFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersImagePairsFromFolder",
            display_name="Image Pairs from Folder",
            category="sliders/training",
            search_aliases=["visual slider", "image slider", "stylegan", "gan edits", "dataset"],
            description="Pictures of the same scenes at several strengths, from a folder in ComfyUI's input folder: "
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
                    tooltip="What the pictures show, where no .txt file beside them says it. May be empty.",
                ),
                *size_inputs(),
                io.String.Input(
                    "strengths",
                    default="",
                    advanced=True,
                    tooltip="Strengths of names that say nothing by themselves, such as 'smallsize=-1, bigsize=1': "
                    "of subfolders, or of the last parts of file names.",
                ),
                io.Float.Input(
                    "max_strength",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Scales all strengths so that the largest is this. A GAN's distances of -20 to 20 become "
                    "handy with 2. 0 leaves them as they are.",
                ),
            ],
            outputs=pair_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others):
        return fingerprint(_folder(folder)), *others.values()

    @classmethod
    def execute(
        cls, folder: str, prompt: str, size: int, multiple: int = STEP, strengths: str = "", max_strength: float = 0.0
    ) -> io.NodeOutput:
        pairs = read_pairs(_folder(folder), parse_marks(strengths), prompt.strip(), size, multiple)
        return shown(cls, pairs.scaled_to(max_strength) if max_strength else pairs)


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def folder_names() -> list[str]:
    """Folders of the input folder, and after them the pairs that come with the pack where no folder is so named."""
    own = picture_folders(input_folder())
    return [*own, *sorted(_shipped() - {*own})]


def _shipped() -> set[str]:
    return {path.name for path in SHIPPED.iterdir() if path.is_dir()}


def _folder(name: str) -> Path:
    is_shipped = name in _shipped() and name not in picture_folders(input_folder())
    return SHIPPED / name if is_shipped else find_folder(input_folder(), name)


def shown(cls: type[io.ComfyNode], pairs: ImagePairs) -> io.NodeOutput:
    """The pairs and their contact sheet, which the node shows as well."""
    sheet = contact_sheet(pairs)
    return io.NodeOutput(pairs, sheet, ui=ui.PreviewImage(sheet, cls=cls))


def contact_sheet(pairs: ImagePairs) -> Tensor:
    """(1, height, width, 3): a row for every set, a column for every strength, what is masked out darkened."""
    strengths = pairs.strengths
    rows = pairs.sets[:ROWS]
    tallest = max(height / width for height, width in (one.size for one in rows))
    box = (max(1, round(CELL * min(tallest, 2.0))), CELL)
    cells = [_cell(one, strength, box) for one in rows for strength in strengths]
    title = "" if len(rows) == len(pairs) else f"{len(rows)} of {len(pairs)}"
    labels = [f"{strength:+g}" if strength else "0" for strength in strengths]
    return draw_strip(torch.stack(cells), labels, title, CELL)


def _cell(one: ImageSet, strength: float, box: tuple[int, int]) -> Tensor:
    """(height, width, 3): the set's picture at a strength, whole, on paper; paper alone where it has none."""
    cell = (torch.tensor(BACKGROUND) / 255).expand(*box, 3).clone()
    if strength not in one.strengths:
        return cell
    picture = one.images[one.strengths.index(strength)].float().cpu()
    if one.mask is not None:
        picture = picture * (OUTSIDE + (1 - OUTSIDE) * one.mask.cpu()[..., None])
    scale = min(box[0] / one.size[0], box[1] / one.size[1])
    height, width = (max(1, round(length * scale)) for length in one.size)
    top, left = (box[0] - height) // 2, (box[1] - width) // 2
    cell[top : top + height, left : left + width] = cover(picture, (height, width), "bicubic")
    return cell
