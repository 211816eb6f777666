"""Is the faster schedule as good? The pocket world's age slider, trained by the published schedule and by ours.

    python3 dev.py bench schedule [--steps 150] [--seeds 5]

Equal iterations, equal everything but where training samples come from. Reports the span along age and the movement
of everything else, as mean and spread over training seeds, and draws a curve for every training. Ours runs twice:
as the nodes' defaults have it, and without two things that the paper has not (`SCHEDULES`). Every
training is kept in the output folder with its figures, so that a bench that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import _models
import numpy as np
import torch
from _people import MEASURED, read
from _published import PublishedSamples
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.pocket.measuring.effect import Effect, effect
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training import run
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.textual_samples import TextualSamples
from PIL import Image, ImageDraw

log = logging.getLogger("bench")
AGE = Concept(
    "portrait of a person",
    "portrait of a very old person",
    "portrait of a very young person",
    ("with glasses", "without glasses"),
    eta=1.0,
)
STRENGTHS = (-1.5, -0.75, 0.0, 0.75, 1.5)
GATE, LATENT = Gate(0.1), (8, 16, 16)
# (where samples come from, settings of the recipe). "ours, as the paper" predicts the target without the preserved
# phrases, and rolls out with the bare model alone.
SCHEDULES = {
    "published": (PublishedSamples, {}),
    "ours": (TextualSamples, {}),
    "ours, as the paper": (TextualSamples, {"preserve_in_target": False, "on_policy_rollouts": 0.0}),
}
COLOURS = {"published": "grey", "ours": "royalblue", "ours, as the paper": "darkorange"}


@dataclass(frozen=True)
class Result:
    schedule: str
    seed: int
    seconds: float
    effect: Effect


class Studio:
    """The pocket model, and the probe that measures what sliders do to its images."""

    def __init__(self, people: int, batch: int):
        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_pocket()
            self.conditionings = encode_prompts(self.clip, (*AGE.prompts(), ""))
        self.probe, self.people, self.batch = load_probe(), people, batch

    def train(self, schedule: str, recipe: TextualRecipe) -> tuple[Slider, float]:
        shape, began = (self.batch, *LATENT), _models.now()
        samples, settings = SCHEDULES[schedule]
        recipe = replace(recipe, **settings)
        with torch.inference_mode():
            trained = run.train(
                self.model,
                self.conditionings,
                recipe,
                run.TrainingData(torch.zeros(shape), AGE.target),
                schedule,
                lambda denoiser, layers, generator: samples(denoiser, layers, recipe, shape, generator),
                run.RunOptions(preview_every=0),
            )
        return trained.slider, _models.now() - began

    def effect_of(self, slider: Slider) -> Effect:
        stack = Stack.of(slider, gate=GATE).swept(0, STRENGTHS, self.people)
        readings = self._read(apply_sliders(self.model, stack), AGE.target, len(STRENGTHS))
        old, young = (self._read(self.model, text, 1)[..., MEASURED.index("age")].mean() for text in AGE.ends()[0])
        return effect(readings, STRENGTHS, MEASURED, "age", float(old - young))

    def _read(self, model, prompt: str, columns: int) -> np.ndarray:
        """(people, columns, attributes): the same people in every column."""
        latent = torch.zeros(1, *LATENT)
        return read(model, self.clip, self.vae, self.probe, prompt, latent, self.people, columns).numpy()


def made(studio: Studio, schedule: str, seed: int, settings: dict, folder: Path) -> Result:
    """Return the result of one training, kept in the folder: a training with these settings is not run twice."""
    name = f"{schedule.replace(' ', '_').replace(',', '')}_{seed}"
    file, trained = folder / f"{name}.json", folder / f"{name}.safetensors"
    asked = {**settings, "batch": studio.batch, "people": studio.people}
    kept = json.loads(file.read_text()) if file.exists() and trained.exists() else {}
    if kept.get("asked") != asked:
        slider, seconds = studio.train(schedule, TextualRecipe(concepts=(AGE,), seed=seed, **settings))
        save_slider(slider, trained)
        kept = {"asked": asked, "seconds": seconds, "effect": {"strengths": []}}
    if tuple(kept["effect"]["strengths"]) != STRENGTHS:
        found = studio.effect_of(load_slider(trained))
        kept["effect"] = {**asdict(found), "means": found.means.tolist()}
        file.write_text(json.dumps(kept, indent=1))
    means = np.array(kept["effect"]["means"])
    return Result(schedule, seed, kept["seconds"], Effect(**{**kept["effect"], "means": means}))


def told(result: Result) -> str:
    found = result.effect
    ages = " ".join(f"{age:.2f}" for age in found.means[:, MEASURED.index("age")])
    return (
        f"{result.schedule:18} seed {result.seed}: {result.seconds:4.0f} s, age {ages}, span {found.span:.2f} of "
        f"{found.reach:.2f}, others {found.mean_movement:.3f}, glasses {found.movements['glasses']:.2f}"
    )


def curves(results: list[Result], path: Path, width: int = 560, height: int = 360) -> None:
    """Age along the strengths, a line for every training: published ones grey, ours blue."""
    sheet = Image.new("RGB", (width, height), "white")
    draw, margin = ImageDraw.Draw(sheet), 36
    low, high = STRENGTHS[0], STRENGTHS[-1]

    def at(strength: float, age: float) -> tuple[float, float]:
        x = margin + (strength - low) / (high - low) * (width - 2 * margin)
        return x, height - margin - age * (height - 2 * margin)

    draw.rectangle([at(low, 1.0), at(high, 0.0)], outline="lightgrey")
    for strength in STRENGTHS:
        draw.text(at(strength, -0.02), f"{strength:+g}", fill="grey", anchor="ma")
    for result in results:
        ages = result.effect.means[:, MEASURED.index("age")]
        draw.line([at(s, a) for s, a in zip(result.effect.strengths, ages)], fill=COLOURS[result.schedule], width=2)
    draw.text((margin, 10), "age along the slider:", fill="black")
    x = margin + draw.textlength("age along the slider:  ")
    for name in dict.fromkeys(result.schedule for result in results):
        draw.text((x, 10), name, fill=COLOURS[name])
        x += draw.textlength(f"{name}   ")
    sheet.save(path)


def summary(results: list[Result]) -> str:
    lines = ["| schedule | span of age | others move | glasses move | seconds |", "|---|---|---|---|---|"]
    for name in SCHEDULES:
        own = [r for r in results if r.schedule == name]
        if own:
            figures = (
                [r.effect.span for r in own],
                [r.effect.mean_movement for r in own],
                [r.effect.movements["glasses"] for r in own],
                [r.seconds for r in own],
            )
            cells = [f"{np.mean(values):.3g} ± {np.std(values, ddof=len(values) > 1):.2g}" for values in figures]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each schedule")
    parser.add_argument("--people", type=int, default=16, help="to measure on")
    parser.add_argument("--batch", type=int, default=1, help="images a training step")
    parser.add_argument("--only", nargs="+", choices=SCHEDULES, help="some of the schedules")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the recipe")
    parser.add_argument("--out", type=Path, default=Path("output/schedule"), help="folder of figures and curves")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    changes = {name: json.loads(value) for name, value in (each.split("=") for each in options.set)}
    settings = {"steps": options.steps, "learning_rate": 2e-3, **changes}
    studio, results = Studio(options.people, options.batch), []
    for seed in range(options.seeds):
        for schedule in options.only or SCHEDULES:
            results.append(made(studio, schedule, seed, settings, options.out))
            log.info(told(results[-1]))
            curves(results, options.out / "curves.png")
    log.info("\n%s", summary(results))
    (options.out / "schedule.md").write_text(summary(results) + "\n")


if __name__ == "__main__":
    main()
