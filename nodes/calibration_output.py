"""What *Calibrate Slider* puts out: in words, and as an audit sheet with images, plots and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..evaluation.calibrating import CalibratedSlider
from ..evaluation.calibration import Side
from ..evaluation.plots import BACKGROUND, INK, SIZE, Curve, draw_plot
from ..evaluation.verdict import WORKS
from ..sliders.stack import Stack
from .image_strip import draw_strip
from .report import Report

MARGIN, LETTERS, TITLE, COLUMNS = 24, 16, 24, 84  # of the text: pixels, and letters of a line
GRADES = {"works": (0, 128, 84), "partly": (176, 112, 0), "fails": (178, 40, 24)}


def calibration_output(
    node: type[io.ComfyNode], sliders: Stack, found: Sequence[CalibratedSlider], warnings: Sequence[str]
) -> io.NodeOutput:
    """Put out the stack with what was found of its first sliders, the audit sheet, and the report.

    warnings: what could not be measured, for the report.
    """
    kept = Stack((*(each.placed for each in found), *sliders.sliders[len(found) :]))
    report = sum((told(each) for each in found), Report().warn(*warnings))
    if any(each.calibration for each in found):
        report = report.fact("Save Slider keeps the calibration in a file.")
    sheet = audit_sheet(found)
    return io.NodeOutput(kept, sheet, report.text, ui=report.on_node(ui.PreviewImage(sheet, cls=node)))


def cut_short(found: Sequence[CalibratedSlider], sliders: Stack) -> str:
    """Say what a cancelled run lacks."""
    parts = [
        f"{each.placed.slider.name} is calibrated by what was sampled until then" for each in found if each.cancelled
    ]
    left = [placed.slider.name for placed in sliders.sliders[len(found) :]]
    parts += [f"not calibrated: {', '.join(left)}"] if left else []
    return f"Cancelled; {'; '.join(parts)}."


def told(found: CalibratedSlider) -> Report:
    """Put a calibration into words: the verdict, what both sides reach and where they end, and what to do."""
    calibration, head = found.calibration, f"{found.placed.slider.name}: {found.verdict.grade}"
    lines = [_side(found.plus), _side(found.minus)]
    if calibration is not None:
        low, high = calibration.useful_range
        units = f"units {calibration.low:.3g} to {calibration.high:.3g}, by {found.response.measured_by}"
        lines.append(f"useful from {low:.3g} to {high:.3g}: {units}")
    report = Report().fact(head, *lines) if found.verdict.grade == WORKS else Report().warn(head).fact(*lines)
    return report.warn(*(f"{each.what} {each.todo}" for each in found.verdict.findings))


def audit_sheet(of_sliders: Sequence[CalibratedSlider]) -> Tensor:
    """Draw a sheet for each slider, one below the other: (1, height, width, 3) in 0..1."""
    sheets = [_sheet(found) for found in of_sliders]
    width = max(sheet.shape[2] for sheet in sheets)
    return torch.cat([_padded(sheet, width) for sheet in sheets], dim=1)


def _sheet(found: CalibratedSlider) -> Tensor:
    """(1, height, width, 3): a strip of images, and below it the verdict and the plots, two beside each other."""
    plots = [_words(found), *_plots(found)]
    plots += [torch.ones_like(plots[0])] * (len(plots) % 2)
    rows = [torch.cat(plots[at : at + 2], dim=1)[None] for at in range(0, len(plots), 2)]
    width = rows[0].shape[2]
    strip = [] if found.strip is None else [_strip(found, width)]
    return torch.cat([_padded(each, width) for each in (*strip, *rows)], dim=1)


def _strip(found: CalibratedSlider, width: int) -> Tensor:
    """Images at equal steps of the control, a row for each seed."""
    sweep, calibration, info = found.strip, found.calibration, found.placed.slider.info
    assert sweep is not None and calibration is not None
    strengths = sweep.strengths(0)
    labels = [f"{calibration.control(s):+.0f} ({s:+.2g})" if s else "0" for s in strengths]
    thumbnails = dict(zip(sweep.made, sweep.thumbnails))
    originals = [image for image in sweep.made if image.slider is None]
    images = torch.stack([thumbnails[image] for original in originals for image in sweep.row(original, 0)])
    image_width = max(32, min(256, width // len(strengths) - 5))
    return draw_strip(images, labels, f"{info.less}  to  {info.more}", image_width)


def _plots(found: CalibratedSlider) -> list[Tensor]:
    """(480, 720, 3) each: effect along strength, distortion along strength, effect along the control."""
    response, by = found.response, found.response.measured_by
    strengths = sorted([*response.strengths, 0.0])

    def along(values: Tensor) -> tuple[list[float], list[float]]:
        """Means and spreads (S,) at all strengths, of (S - 1, n) and 0 at strength 0."""
        rows = dict(zip(response.strengths, values))
        means = [float(rows[s].mean()) if s else 0.0 for s in strengths]
        return means, [float(rows[s].std(correction=0)) if s else 0.0 for s in strengths]

    effects, spread = along(response.effects)
    distortions, _ = along(response.distortions)
    drawn = [
        draw_plot(
            [Curve(found.placed.slider.name, strengths, effects, spread)], "Effect, with its spread", "strength", by
        ),
        draw_plot([Curve(found.placed.slider.name, strengths, distortions)], "Distortion", "strength", "distance"),
    ]
    if (calibration := found.calibration) is not None:
        low, high = calibration.useful_range
        inside = [(calibration.control(s), effect) for s, effect in zip(strengths, effects) if low <= s <= high]
        controls, reached = zip(*inside)
        slope = sum(c * e for c, e in inside) / sum(c * c for c in controls)
        measured = Curve("measured", controls, reached)
        straight = Curve("equal steps", [controls[0], controls[-1]], [slope * controls[0], slope * controls[-1]])
        drawn.append(draw_plot([measured, straight], "Effect along the control", "control", by))
    return drawn


def _words(found: CalibratedSlider) -> Tensor:
    """(480, 720, 3): the verdict."""
    image = Image.new("RGB", SIZE, BACKGROUND)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(LETTERS)
    (_, head), *lines = told(found).lines
    pen.text((MARGIN, MARGIN), head, GRADES[found.verdict.grade], ImageFont.load_default(TITLE))
    y = MARGIN + 2 * TITLE
    for _, line in lines:
        for part in textwrap.wrap(line, COLUMNS):
            pen.text((MARGIN, y), part, INK, font)
            y += round(1.3 * LETTERS)
        y += LETTERS // 2
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _side(side: Side) -> str:
    name = "plus" if side.sign > 0 else "minus"
    if not side.end:
        return f"{name} side: nothing beyond chance"
    parts = [f"moves images by {side.reach:.3g}, {side.share:.0%} of them its way, up to strength {side.end:.3g}"]
    if side.saturated is not None:
        parts.append(f"saturated at {side.saturated:.3g}")
    if side.broken is not None:
        parts.append(f"images broken at {side.broken:.3g}")
    if not side.is_settled:
        parts.append("still growing there: a larger limit shows where it ends")
    return f"{name} side: {'; '.join(parts)}"


def _padded(sheet: Tensor, width: int) -> Tensor:
    """(1, height, w, 3) -> (1, height, width, 3), white to the right."""
    return F.pad(sheet, (0, 0, 0, width - sheet.shape[2]), value=1.0)
