"""`dev.py demo`: an age slider, trained and turned in the real ComfyUI, and what the probe reads along it.

It posts the example workflows to a server of its own, with people that training has not seen, and leaves a
strip of images, a report and its numbers in a folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..devtools import host, server, workflow
from ..devtools.problem import Problem
from ..pocket.measuring.effect import Effect, effect
from ..pocket.measuring.probe import COLUMNS, load_probe
from . import live, report

say = functools.partial(print, flush=True)
EXAMPLES = host.ROOT / "example_workflows"
OUTPUT = host.ROOT / "output" / "demo"
MORE, LESS = "portrait of a very old person", "portrait of a very young person"
STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
PRESERVED = ("woman, with glasses", "man, without glasses", "man, with glasses", "woman, without glasses")
GATE, ETA = 0.2, 2.2  # by a fifth of sampling it is settled who is seen; what is left to turn takes a larger eta
FIRST_SEED = 50_000  # training draws from seed 0
PEOPLE = 8  # in one batch
SHOWN = 5  # people in the strip
TIED = ("glasses", "hair_shade")  # to age, in the world that is drawn
MEASURED = tuple(name for name in COLUMNS if name not in ("flat colour", "ink sketch", "pastel"))


class Studio:
    """The running server, and what the demo asks of it."""

    def __init__(self, running: server.Server, folder: Path):
        self.server, self.folder = running, folder
        self.nodes = running.object_info()

    def train(self, name: str, preserve: str, steps: int | None) -> str:
        """Train the age slider by the example workflow; the name of the file it is saved in."""
        prompt = self._prompt("train_a_textual_slider")
        workflow.change(prompt, "Slider Concept", preserve=preserve, eta=ETA)
        workflow.change(prompt, "Save Slider", name=f"sliders/{name}")
        workflow.change(prompt, "Sweep Sliders", values="-1, 0, 1")
        if steps:
            workflow.change(prompt, "Train Slider", steps=steps)
        entry = self._run(prompt)
        (file,) = server.saved_as(entry)
        return file

    def sweep(self, slider: str, people: int) -> torch.Tensor:
        """Return (people, strengths, 128, 128, 3) images of a slider at all strengths, by the example workflow."""
        parts = []
        for first in range(0, people, PEOPLE):
            prompt = self._prompt("use_sliders")
            workflow.change(prompt, "Load Slider", slider=slider)
            workflow.change(prompt, "Gate Sliders", start_percent=GATE)
            workflow.change(prompt, "Sweep Sliders", values=", ".join(f"{s:g}" for s in STRENGTHS))
            workflow.change(prompt, "People to Sweep Over", batch_size=min(PEOPLE, people - first))
            parts.append(self._images(prompt, first))
        return torch.cat(parts).unflatten(0, (-1, len(STRENGTHS)))

    def prompted(self, text: str, slider: str, people: int) -> torch.Tensor:
        """Return (people, 128, 128, 3) images of the bare model for a prompt: that workflow, the slider at zero."""
        prompt = self._prompt("use_sliders")
        workflow.change(prompt, "Load Slider", slider=slider)
        workflow.change(prompt, "Prompt", text=text)
        workflow.change(prompt, "Sweep Sliders", values="0")
        workflow.change(prompt, "People to Sweep Over", batch_size=people)
        return self._images(prompt, 0)

    def _prompt(self, name: str) -> workflow.Prompt:
        return workflow.to_prompt(workflow.read_workflow(EXAMPLES / f"{name}.json"), self.nodes)

    def _images(self, prompt: workflow.Prompt, first: int) -> torch.Tensor:
        workflow.change(prompt, "KSampler", seed=FIRST_SEED + first)
        (decoded,) = workflow.named(prompt, "VAEDecode")
        saving = workflow.add(prompt, "SaveImage", images=[decoded, 0], filename_prefix="demo")
        entry = self._run(prompt)
        files = [
            self.server.base / "output" / i["subfolder"] / i["filename"] for i in entry["outputs"][saving]["images"]
        ]
        return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]) / 255

    def _run(self, prompt: workflow.Prompt) -> dict:
        return live.run_live(self.server, prompt, Telling(self.folder))


class Telling:
    """Progress of a workflow on the terminal, and its last preview in the folder."""

    def __init__(self, folder: Path):
        self.folder, self.title, self.start = folder, "", time.monotonic()

    def __call__(self, moment: live.Moment) -> None:
        if moment.preview:
            (self.folder / "preview.jpg").write_bytes(moment.preview)
            return
        if moment.title != self.title:
            self.title, self.start = moment.title, time.monotonic()
        if moment.of > 1:
            spent = time.monotonic() - self.start
            left = spent / max(1, moment.done) * (moment.of - moment.done)
            line = f"  {moment.title}: {moment.done} / {moment.of}, {left:.0f} s left   "
            if sys.stdout.isatty():
                print(f"\r{line}", end="\n" if moment.done == moment.of else "", flush=True)
            elif moment.done == moment.of or moment.done % max(1, moment.of // 4) == 0:
                say(line.rstrip())


def measured(images: torch.Tensor, distance: float) -> Effect:
    """Measure the effect on age and on everything else. images: (people, strengths, 128, 128, 3)."""
    readings = load_probe().read(images.flatten(0, 1)).values[:, : len(MEASURED)]
    return effect(readings.unflatten(0, images.shape[:2]).numpy(), STRENGTHS, MEASURED, "age", distance, TIED)


def unchanged(images: torch.Tensor) -> float:
    """Return the share of images off zero with the woman or man, hat and style of strength 0. images: as above."""
    probe, middle = load_probe(), STRENGTHS.index(0.0)
    before = probe.read(images[:, middle])
    same = [before.same_person(probe.read(images[:, i])) for i in range(len(STRENGTHS)) if i != middle]
    return float(torch.stack(same).float().mean())


def prompt_distance(studio: Studio, slider: str, people: int) -> float:
    """Return how far apart the opposing prompts lie in age, by the probe."""
    old, young = (load_probe().read(studio.prompted(text, slider, people))["age"].mean() for text in (MORE, LESS))
    return float(old - young)


def run(options: argparse.Namespace) -> None:
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    say("starting ComfyUI ...")
    with server.temporary_base() as base, server.running(host.find(say), base) as running:
        studio = Studio(running, folder)
        say(f"ComfyUI runs at {running.url}; training an age slider that preserves glasses ...")
        preserving = studio.train("demo_age", "\n".join(PRESERVED), options.steps)
        say(f"turning it through {len(STRENGTHS)} strengths on {options.seeds} people ...")
        images = studio.sweep(preserving, options.seeds)
        say("asking the bare model for the two ends in words ...")
        distance = prompt_distance(studio, preserving, options.seeds)
        effects = {"preserving": measured(images, distance)}
        if options.compare:
            say("the same slider with nothing preserved, for comparison ...")
            free = studio.train("demo_age_free", "", options.steps)
            effects["free"] = measured(studio.sweep(free, options.seeds), distance)
        same = unchanged(images)
        report.write(folder, images[:SHOWN], effects, same, options.seeds, time.monotonic() - started)
        (folder / "demo_age.safetensors").write_bytes((base / "models" / "loras" / preserving).read_bytes())
    say(report.summary(effects, same))
    say(f"\nlook at {folder / 'strip.png'} and {folder / 'report.md'} ({time.monotonic() - started:.0f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=OUTPUT, help="where images and report go")
    parser.add_argument("--steps", type=int, help="training steps (default: the example workflow's)")
    parser.add_argument("--seeds", type=int, default=32, help="people to measure on")
    parser.add_argument("--compare", action="store_true", help="also train with nothing preserved")
    try:
        run(parser.parse_args())
    except (Problem, server.ServerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
