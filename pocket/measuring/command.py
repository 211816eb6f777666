"""Measures the pocket models: `python3 dev.py module pocket.measuring.command --folder FOLDER`.

Writes what `report` finds as `report.json` and `report.md`, and sheets of unselected samples, into the folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from dataclasses import replace
from pathlib import Path

import comfy.utils
import torch

from ...sliders.formats.slider_files import load_slider
from ..models.loading import FOLDER, load_pocket, with_turbo
from ..train_sliders import FOLDER as SLIDERS
from ..train_sliders import LESSONS
from ..training.run import written
from ..world.portrait import portraits
from . import report, turnable
from .probe import load_probe
from .prompts import PLAIN
from .sampling import FEW_STEPS, Sampling, sampled
from .sheet import contact_sheet, overview

PARTS = ("vae", "described", "oppositions", "samples", "gate", "time", "sheets", "turnable", "sliders")
ON_A_SHEET, IN_A_ROW, EDITED, ALONG = 64, 16, 8, 16
log = logging.getLogger(__name__)


class Measurement:
    """Runs the parts that were asked for; each gives a table, name to figure."""

    def __init__(self, models: report.Models, count: int, sampling: Sampling, folder: Path):
        self.models, self.count, self.sampling, self.folder = models, count, sampling, folder

    def vae(self) -> dict[str, float]:
        return report.of_the_vae(self.models, min(512, self.count))

    def described(self) -> dict[str, float]:
        figures, sheet = report.of_described(self.models, self.count, self.sampling)
        sheet.save(self.folder / "misses.png", optimize=True)
        return figures

    def oppositions(self) -> dict[str, list[float]]:
        """Both ends, their distance, and the furthest that anything else moved."""
        shown = report.of_oppositions(self.models, min(64, self.count), self.sampling)
        rows = [(column, ends.images[0][:4], ends.images[1][:4]) for column, ends in shown.items()]
        overview(rows).save(self.folder / "oppositions.png", optimize=True)
        return {column: [ends.low, ends.high, ends.high - ends.low, ends.worst] for column, ends in shown.items()}

    def samples(self) -> dict[str, float]:
        unguided = replace(self.sampling, cfg=1.0)
        figures, sheet = report.of_samples(self.models, self.count, unguided)
        sheet.save(self.folder / "unguided.png", optimize=True)
        return figures

    def gate(self) -> dict[str, list[float]]:
        return report.of_the_gate(self.models, min(64, self.count), self.sampling)

    def time(self) -> dict[str, float]:
        """Seconds an image of a batch, VAE and prompt left out: the median of three."""
        took = []
        for _ in range(3):
            start = time.monotonic()
            report.sampled_latents(self.models.pocket, [PLAIN] * 8, self.sampling)
            took.append((time.monotonic() - start) / 8)
        return {"seconds an image": statistics.median(took)}

    def sheets(self) -> dict[str, str]:
        drawn = report.drawings(portraits(ON_A_SHEET, seed=2**41))
        made = sampled(self.models.pocket, [PLAIN] * ON_A_SHEET, self.sampling)
        for name, images in (("drawings", drawn), ("samples", made)):
            rows = [("", part) for part in images.split(IN_A_ROW)]
            contact_sheet(rows, scale=1).save(self.folder / f"{name}.png", optimize=True)
        return {"drawings": "drawings.png", "samples": "samples.png"}

    def sliders(self) -> dict[str, list[float]]:
        """The sliders that come with the pack, see `turnable.along`."""
        figures = {}
        for name, lesson in LESSONS.items():
            slider = load_slider(SLIDERS / f"pocket_{name}.safetensors")
            count = min(ALONG, self.count)
            figures[name] = turnable.along(self.models, slider, lesson.column, count, self.sampling)
        return figures

    def turnable(self) -> dict[str, float]:
        """A first age slider, and a first edit by it."""
        slider = turnable.first_slider(self.models, LESSONS["age"].recipe)
        figures: dict[str, float] = {}
        for name, shown in (
            ("slider", turnable.turned(self.models, slider, min(64, self.count), self.sampling)),
            ("edit", turnable.edited(self.models, slider, "age", min(EDITED, self.count))),
        ):
            rows = [(at, part[:EDITED]) for at, part in shown.images.items()]
            contact_sheet(rows, scale=1).save(self.folder / f"{name}.png", optimize=True)
            figures |= {f"{name}: {figure}": value for figure, value in shown.figures.items()}
        return figures


def markdown(tables: dict[str, dict]) -> str:
    """Each part as a table."""
    lines = []
    for part, table in tables.items():
        lines += [f"## {part}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_told(value)} |" for name, value in table.items()] + [""]
    return "\n".join(lines)


def _told(value: float | str | list[float]) -> str:
    if isinstance(value, list):
        return " ".join(_told(each) for each in value)
    return value if isinstance(value, str) else f"{value:.3f}"


def main() -> None:
    defaults = Sampling()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="tables and sheets go here")
    parser.add_argument("--weights", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=2048, help="samples, where many are needed")
    parser.add_argument("--turbo", action="store_true", help="the few-step student, at four steps and CFG 1")
    parser.add_argument("--cfg", type=float, default=defaults.cfg)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    comfy.utils.set_progress_bar_enabled(False)
    options.folder.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(steps=options.steps, cfg=options.cfg)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        *pocket, vision = load_pocket(options.weights)
        if options.turbo:
            pocket[0], sampling = with_turbo(pocket[0], options.weights), FEW_STEPS
    models = report.Models(tuple(pocket), vision, load_probe(options.weights / "probe.safetensors"))
    measurement = Measurement(models, options.count, sampling, options.folder)
    tables = {}
    for part in PARTS:
        if part in options.only:
            tables[part] = getattr(measurement, part)()
            log.info("%s", markdown({part: tables[part]}))
    written(options.folder / "report.json", lambda path: path.write_text(json.dumps(tables, indent=1)))
    written(options.folder / "report.md", lambda path: path.write_text(markdown(tables)))


if __name__ == "__main__":
    main()
