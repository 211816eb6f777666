"""Are equal steps of the control equal in effect? The pocket's sliders, on images that calibrating did not see.

    python3 dev.py bench calibration [--only pocket_age ...] [--folder FOLDER] [--sheets FOLDER]
        [--count 64] [--calibration-count 16] [--intervals 8] [--turbo]

Each slider is calibrated as Calibrate Slider does it, on eight prompts, less any that names what it turns, and then
sampled on `--count` other seeds of two other prompts, at equal steps of the control and of raw strength over the same
useful range. The table has the largest deviation of a step of the mean effect from the mean step, in both units. What
is there or not, such as glasses, is read as a probability. `--turbo` samples with the few-step model, ten times as
fast; `--sheets` keeps every audit sheet.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _models  # noqa: F401  (makes ComfyUI and the pack importable)
import torch
from _people import FEW_STEPS, ORDINARY
from concept_sliders.comfy_host.joint_encoders import image_embedding
from concept_sliders.evaluation.calibrating import CalibratedSlider, CalibrationPlan, calibrate
from concept_sliders.evaluation.calibration import largest_deviation
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import EditTexts
from concept_sliders.evaluation.measuring import measure
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.evaluation.sweep_sampling import Source
from concept_sliders.nodes.calibration_output import audit_sheet, told
from concept_sliders.nodes.model_folders import SHIPPED
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.models.loading import load_pocket, with_turbo
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack, StackedSlider
from PIL import Image

log = logging.getLogger("bench")
SEEN = (  # of many kinds, as the map is to hold for others
    "portrait of a person",
    "portrait of a woman",
    "portrait of a man, ink sketch",
    "portrait of a person, flat colour",
    "portrait of a man with glasses, pastel",
    "portrait of a woman, with a hat",
    "portrait of a person, night sky",
    "portrait of a person, long hair",
)
HELD_OUT = ("portrait of a man", "portrait of a person, with a hat")
FIRST_SEED, FIRST_HELD_OUT = 0, 10_000
AIM = 0.15  # the largest deviation that there may be in calibrated units


@dataclass(frozen=True)
class Figures:
    """Of one slider: how far steps are from equal, in calibrated units and in raw strength; None if it has none."""

    found: CalibratedSlider
    calibrated: float | None = None
    raw: float | None = None

    def row(self) -> str:
        calibration, name = self.found.calibration, self.found.placed.slider.name
        if calibration is None:
            return f"| {name} | {self.found.verdict.grade} | | | | |"
        low, high = calibration.useful_range
        ends = f"{calibration.low:.0f} to {calibration.high:.0f} ({low:.2f} to {high:.2f})"
        figures = f"{self.calibrated:.0%} | {self.raw:.0%}"
        return f"| {name} | {self.found.verdict.grade} | {self.found.response.measured_by} | {ends} | {figures} |"


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        with torch.inference_mode():
            model, clip, vae, vision = load_pocket()
            model = with_turbo(model) if options.turbo else model
        probe = load_probe()

        def read(images: torch.Tensor) -> dict[str, torch.Tensor]:
            readings = probe.read(images)
            return {name: readings[name] for name in COLUMNS}

        settings = FEW_STEPS if options.turbo else replace(ORDINARY, scheduler="normal")
        self.source = Source(model, clip, vae, torch.zeros(1, 8, 16, 16), settings)
        self.instruments = Instruments({"pocket vision": image_embedding(vision)}, probe=read)

    def figures(self, file: Path) -> Figures:
        slider = load_slider(file)
        placed = Stack.of(slider, gate=slider.info.gate)[0]
        seeds = range(FIRST_SEED, FIRST_SEED + self.options.calibration_count)
        plan = CalibrationPlan(seen_by(slider), tuple(seeds), self.options.limit, batch_size=self.options.batch)
        texts = EditTexts(slider.info.more, slider.info.less)
        found = calibrate(self.source, placed, texts, plan, self.instruments, lambda done, of: None)
        log.info("%s", told(found).text)
        if (of := found.calibration) is None:
            return Figures(found)
        controls = torch.linspace(of.low, of.high, self.options.intervals + 1).tolist()
        calibrated = [of.strength(control) for control in controls]
        raw = torch.linspace(*of.useful_range, self.options.intervals + 1).tolist()
        return Figures(found, *(self.deviation(found, placed, strengths) for strengths in (calibrated, raw)))

    def deviation(self, found: CalibratedSlider, placed: StackedSlider, strengths: Sequence[float]) -> float:
        """The largest deviation of a step of the effect from the mean step, on held-out seeds and prompts."""
        seeds = tuple(range(FIRST_HELD_OUT, FIRST_HELD_OUT + self.options.count))
        wanted = tuple(strength for strength in strengths if strength)
        plan = SweepPlan(Stack((placed,)), HELD_OUT, seeds, wanted, self.options.batch)
        measured = measure(self.source, plan, self.instruments, lambda done, of: None)
        readings = measured.readings[found.response.measured_by.removesuffix(", falling")]
        at = {s: [i for i, image in enumerate(measured.made) if image.strength == s] for s in strengths}
        means = [float(readings[at[s]].mean()) for s in strengths]
        log.info("  %s", ", ".join(f"{s:+.2f}: {mean:.3f}" for s, mean in zip(strengths, means)))
        return largest_deviation(means)


def seen_by(slider: Slider) -> tuple[str, ...]:
    """Return the prompts to calibrate on: those that do not name what the slider turns, as "night sky" the sky."""
    words = set(slider.name.split())
    return tuple(prompt for prompt in SEEN if words.isdisjoint(prompt.replace(",", "").split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="of the sliders")
    parser.add_argument("--only", nargs="+", help="names of files, without their ending")
    parser.add_argument("--sheets", type=Path, help="audit sheets are kept here")
    parser.add_argument("--count", type=int, default=64, help="held-out seeds")
    parser.add_argument("--calibration-count", type=int, default=16, help="seeds of a prompt to calibrate on")
    parser.add_argument("--intervals", type=int, default=8, help="equal steps from end to end")
    parser.add_argument("--limit", type=float, default=16.0, help="the largest strength to try")
    parser.add_argument("--turbo", action="store_true", help="sample with the few-step model")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    bench = Bench(options)
    rows = []
    for file in sorted(options.folder.glob("*.safetensors")):
        if options.only and file.stem not in options.only:
            continue
        with torch.inference_mode():  # as ComfyUI runs its nodes
            figures = bench.figures(file)
        rows.append(figures)
        log.info("%s\n", figures.row())
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            sheet = (audit_sheet([figures.found])[0] * 255).round().to(torch.uint8).numpy()
            Image.fromarray(sheet).save(options.sheets / f"{file.stem}.png")
    log.info("\n| slider | verdict | measured by | units (strengths) | calibrated | raw |\n|---|---|---|---|---|---|")
    for figures in rows:
        log.info("%s", figures.row())
    within = sum(each.calibrated is not None and each.calibrated <= AIM for each in rows)
    log.info("\n%d of %d within %.0f %% of equal steps.", within, len(rows), 100 * AIM)


if __name__ == "__main__":
    main()
