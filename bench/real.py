"""Photographs' stand-ins inverted, made again, and edited: drawings of the pocket world that no training has seen.

    python3 dev.py bench real --folder FOLDER [--count 32] [--steps 50] [--cfg 3] [--learning-rate 0.1] [--named]

How near the reconstructions come, in PSNR of the images; how far sliders move the probe's readings on them, each
drawing towards the end that has room; with `--parts generated`, the same on generated images of the same prompts; a
sheet of originals, reconstructions and edits; and which aims are not reached. The captions say nothing of what the
sliders turn, unless --named is given: in guidance a prompt that names it pulls against the slider. Every part is kept
in the folder, and a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import _models  # noqa: F401  (makes ComfyUI and the pack importable)
import comfy.utils
import numpy as np
import torch
from concept_sliders.inversion.conditioning import negative_conditioning
from concept_sliders.inversion.inversion_files import load_inversion, save_inversion
from concept_sliders.inversion.inversion import Inversion
from concept_sliders.inversion.settings import InversionSettings
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.pocket.world.captions import caption
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.measuring.figures import psnr
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.pocket.measuring.report import drawings
from concept_sliders.pocket.measuring.sampling import by_euler, conditioning
from concept_sliders.pocket.measuring.sheet import contact_sheet
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.stack import Stack
from torch import Tensor

log = logging.getLogger("bench")
SEED = 2**40  # beyond every seed that a training draws people with
SLIDERS = {"age": "age", "smile": "smile", "eyes": "eye_size"}  # files of the pack, and what they turn
READ = [name for name in COLUMNS if name not in ("flat colour", "ink sketch", "pastel", "spoiled")]
STRENGTHS = (3.0, 1.5, 1.5)  # so late, age is turned less than the others
SHOWN = 8
RIGHT, FAR, BESIDE = 29 / 32, 0.25, 0.1  # aims: images moved the right way, how far, and the rest of an image
METHODS: dict[str, dict[str, Any]] = {
    "null-text": {"refinement": 2},
    "negative prompt": {"method": "negative prompt", "refinement": 2},
    "plain": {"method": "plain", "cfg": 1.0},
}
PARTS = ("reconstructions", "edits", "generated")


class Bench:
    def __init__(self, folder: Path, count: int, steps: int, cfg: float, rate: float, gate: float, named: bool):
        """rate: null-text's learning rate. gate: the part of sampling that sliders act from."""
        self.folder, self.steps, self.cfg, self.rate = folder, steps, cfg, rate
        self.gate, self.opens = Gate(gate), int(gate * steps)  # the step that sliders first act in
        folder.mkdir(parents=True, exist_ok=True)
        self.probe, people = load_probe(), portraits(count, SEED)
        self.well_drawn = [index for index, person in enumerate(people) if not person.spoiled]
        generator = np.random.default_rng(SEED)
        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_pocket()
            self.images = drawings(people)  # (count, 128, 128, 3)
            self.latents = self.vae.encode(self.images)
            unsaid = () if named else SLIDERS.values()
            self.positive = conditioning(self.clip, [caption(person, generator, unsaid) for person in people])
            self.negative = conditioning(self.clip, [""])

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor, made once."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            log.info("%s", name)
            torch.save(make(), path)
        return torch.load(path, weights_only=True)

    def inversion(self, name: str) -> Inversion:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            log.info("%s: inverting", name)
            common = {"steps": self.steps, "cfg": self.cfg, "learning_rate": self.rate}
            chosen = InversionSettings(**{**common, **METHODS[name]})
            with torch.inference_mode():
                made = invert(self.model, self.latents, self.positive, self.negative, chosen)
            save_inversion(made, path)
        return load_inversion(path)

    def sampled(self, what: str, model, steps: slice, latent: Tensor, cfg: float | None = None) -> Tensor:
        """Latents, by ComfyUI's sampler, after some of the steps. what: an inversion's name, or "generated"."""
        made = self.inversion("plain" if what == "generated" else what)
        negative = self.negative if what == "generated" else negative_conditioning(made)
        nothing = torch.zeros_like(latent)
        return by_euler(model, latent, nothing, made.sigmas[steps], self.positive, negative, cfg or self.cfg)

    def begun(self, what: str) -> Tensor:
        """Latents where the gate opens: up to there all edits are the same."""
        first, name = slice(0, self.opens + 1), f"{what} up to {self.gate.start:g}"
        if what != "generated":
            start = self.inversion(what).noise
            return self.kept(name, lambda: self.sampled(what, self.model, first, start))
        noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
        sigmas, nothing = self.inversion("plain").sigmas[first], torch.zeros_like(noise)
        make = partial(by_euler, self.model, nothing, noise, sigmas, self.positive, self.negative, self.cfg)
        return self.kept(name, make)

    def again(self, what: str, model, name: str) -> Tensor:
        """(count, 128, 128, 3) images, with what the model has on it from the gate on."""
        later, latents = slice(self.opens, None), self.begun(what)
        made = self.kept(f"{what} from {self.gate.start:g} {name}", lambda: self.sampled(what, model, later, latents))
        return self.decoded(made)

    @torch.inference_mode()
    def decoded(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).clamp(0, 1)

    def edited(self, what: str, name: str, strength: float) -> Tensor:
        path = Path(__file__).parent.parent / "pocket" / "sliders" / f"pocket_{name}.safetensors"
        model = apply_sliders(self.model, Stack.of(load_slider(path), strength, self.gate))
        return self.again(what, model, f"{name} {strength:+g}")

    def reconstructions(self) -> dict[str, float]:
        """PSNR in decibels, the mean over the images."""
        noise, every = self.inversion("plain").noise, slice(None)
        at_1 = self.kept("plain at 1", lambda: self.sampled("plain", self.model, every, noise, 1.0))
        guided = self.kept("plain guided", lambda: self.sampled("plain", self.model, every, noise))
        made = {
            "VAE round trip": self.decoded(self.latents),
            "plain, sampled at cfg 1": self.decoded(at_1),
            f"plain, sampled at cfg {self.cfg:g}": self.decoded(guided),
            "null-text": self.again("null-text", self.model, "again"),
            "negative prompt": self.again("negative prompt", self.model, "again"),
        }
        return {name: float(psnr(images, self.images).mean()) for name, images in made.items()}

    def movements(self, what: str, strengths: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """How far each slider moves its own attribute and the others, each image towards the end that has room.

        right: how many images move the right way. moved: their mean, of the attribute's range. others, each: the
        mean over images and other attributes, whichever way.
        """
        moved = {}
        before = self.probe.read(self.again(what, self.model, "again"))
        for name, own in SLIDERS.items():
            after = self.probe.read(self.turned(what, name, strengths[name]))
            changes = {column: after[column] - before[column] for column in READ}
            change, others = changes.pop(own) * self.sides(what, own), torch.stack(list(changes.values()))
            moved[name] = {
                "right": int((change > 0).sum()),
                "of": len(change),
                "moved": float(change.mean()),
                "others, each": float(others.abs().mean()),
            }
            log.info("%-6s on %-10s %d of %d the right way, by %.3f; others %.3f", name, what, *moved[name].values())
        return moved

    def sides(self, what: str, attribute: str) -> Tensor:
        """(count,) 1 where there is more room above what is read, else -1."""
        return 1 - 2 * (self.probe.read(self.again(what, self.model, "again"))[attribute] > 0.5).float()

    def turned(self, what: str, name: str, strength: float) -> Tensor:
        """(count, 128, 128, 3): each towards the end that has room."""
        less, more = (self.edited(what, name, side * strength) for side in (-1, 1))
        return torch.where(self.sides(what, SLIDERS[name])[:, None, None, None] > 0, more, less)

    def sheet(self, strengths: Mapping[str, float]) -> None:
        """Draw the first well drawn people, as they are, made again, and edited."""
        rows = [
            ("original", self.images),
            ("null-text", self.again("null-text", self.model, "again")),
            *(
                (f"{name} at {side * strength:+g}", self.edited("null-text", name, side * strength))
                for name, strength in strengths.items()
                for side in (-1, 1)
            ),
        ]
        sheet = contact_sheet([(label, images[self.well_drawn[:SHOWN]]) for label, images in rows])
        sheet.save(self.folder / "real.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="everything made is kept here")
    parser.add_argument("--count", type=int, default=32, help="drawings")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of null-text; published: 0.01")
    parser.add_argument("--gate", type=float, default=0.2, help="from which part of sampling on sliders act")
    parser.add_argument(
        "--strengths", type=float, nargs=3, default=STRENGTHS, help="of the edits of age, smile, eyes, to both sides"
    )
    parser.add_argument("--named", action="store_true", help="captions may name what sliders turn")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2])
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    comfy.utils.set_progress_bar_enabled(False)
    bench = Bench(
        options.folder,
        options.count,
        options.steps,
        options.cfg,
        options.learning_rate,
        options.gate,
        options.named,
    )
    figures: dict[str, Any] = {}
    strengths = dict(zip(SLIDERS, options.strengths, strict=True))
    if "reconstructions" in options.parts:
        figures["psnr"] = bench.reconstructions()
        for name, value in figures["psnr"].items():
            log.info("%-32s %5.1f dB", name, value)
    if "generated" in options.parts:
        figures["generated"] = bench.movements("generated", strengths)
    if "edits" in options.parts:
        figures["edits"] = bench.movements("null-text", strengths)
        bench.sheet(strengths)
    (options.folder / "real.json").write_text(json.dumps(figures, indent=1))
    if missed := list(misses(figures, options.cfg)):
        raise SystemExit("\n".join(missed))


def misses(figures: dict, cfg: float) -> Iterator[str]:
    """What of the aims is not reached, as far as it was measured."""
    if psnr := figures.get("psnr"):
        made, plain = psnr["null-text"], psnr[f"plain, sampled at cfg {cfg:g}"]
        if made < (bound := psnr["VAE round trip"]) - 1:
            yield f"null-text comes to {made:.1f} dB; the VAE alone to {bound:.1f}, less 1 is allowed"
        if made < plain:
            yield f"null-text comes to {made:.1f} dB; plain inversion to {plain:.1f}"
    for name, here in figures.get("edits", {}).items():
        if here["right"] < RIGHT * here["of"]:
            yield f"{name} moves {here['right']} of {here['of']} the right way; {RIGHT:.0%} are asked for"
        if here["moved"] < FAR:
            yield f"{name} moves by {here['moved']:.3f}; a quarter of the range is asked for"
        if here["others, each"] > BESIDE:
            yield f"{name} moves the others by {here['others, each']:.3f} an image; {BESIDE:g} is allowed"


if __name__ == "__main__":
    main()
