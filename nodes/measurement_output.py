"""What *Measure Slider* puts out: a report, plots, a contact sheet, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..comfy_host.identity import family, weights_hash
from ..evaluation.measurement_files import write_measurements
from ..evaluation.measurements import Measured, SliderMeasurements
from ..evaluation.plots import plots
from ..evaluation.sweep import Sweep
from ..evaluation.sweep_sampling import Source
from ..evaluation.tables import as_text, slider_table
from .image_strip import draw_strip
from .model_folders import free_path
from .report import Report

FOLDER = "measurements"  # in ComfyUI's output folder
SHEET_ROWS, SHEET_IMAGE_WIDTH = 4, 128  # of a slider in the contact sheet at most; pixels


def free_file(name: str) -> Path:
    """Choose the JSON file of a run, whose CSV stands beside it; see `free_path`."""
    return free_path(_output() / FOLDER, name, "Measure Slider", (".json", ".csv"))


def facts(source: Source, measured: Measured) -> dict[str, Any]:
    """Return what the file says about a run, beside the numbers."""
    plan = measured.plan
    return {
        "cancelled": measured.cancelled,
        "model": {"family": family(source.model), "hash": weights_hash(source.model)},
        "sampling": {**asdict(source.settings), "negative": source.negative},
        "prompts": plan.prompts,
        "seeds": plan.seeds,
        "strengths": plan.strengths,
        "units": plan.units,
        "encoders": list(measured.embeddings),
    }


def measurement_output(
    node: type[io.ComfyNode],
    of_sliders: Sequence[SliderMeasurements],
    file: Path,
    facts: Mapping[str, Any],
    warnings: Sequence[str],
) -> io.NodeOutput:
    """Write the files of a run, and put out its table, plots and contact sheet.

    warnings: what could not be measured, for the report.
    """
    tables = [slider_table(each) for each in of_sliders]
    write_measurements(file.with_suffix(""), of_sliders, tables, facts)
    saved = f"Saved as {file.relative_to(_output()).as_posix()}"
    report = Report().warn(*warnings).fact(*(as_text(table) for table in tables), saved)
    measured, positions = of_sliders[0].measured, [each.position for each in of_sliders]
    drawn, sheet = plots(tables), contact_sheet(measured, positions)
    shown = report.on_node(*(ui.PreviewImage(images, cls=node) for images in (sheet, drawn)))
    return io.NodeOutput(report.text, drawn, sheet, str(file), ui=shown)


def contact_sheet(sweep: Sweep, positions: Sequence[int] | None = None) -> Tensor:
    """Draw the images of sliders: a strip for each, with a row for each prompt and seed, four at most.

    positions: of the sliders in the plan's stack; None takes all.
    Returns (1, height, width, 3) in 0..1. What a cancelled run has not made is left white.
    """
    stack, strips = sweep.plan.stack, []
    for position in range(len(stack)) if positions is None else positions:
        labels = [f"{strength:+g}" if strength else "0" for strength in sweep.strengths(position)]
        strips.append(draw_strip(_rows(sweep, position), labels, stack[position].slider.name, SHEET_IMAGE_WIDTH))
    width = max(strip.shape[2] for strip in strips)
    return torch.cat([F.pad(strip, (0, 0, 0, width - strip.shape[2]), value=1.0) for strip in strips], dim=1)


def _rows(sweep: Sweep, position: int) -> Tensor:
    """(rows * strengths, h, w, 3): the thumbnails of the first prompts and seeds, white where there is none."""
    thumbnails = dict(zip(sweep.made, sweep.thumbnails))
    white = torch.ones_like(sweep.thumbnails[0])
    originals = [image for image in thumbnails if image.slider is None][:SHEET_ROWS]
    return torch.stack([thumbnails.get(image, white) for at in originals for image in sweep.row(at, position)])


def _output() -> Path:
    return Path(folder_paths.get_output_directory())
