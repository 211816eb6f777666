"""Photographs' stand-ins inverted, made again, and edited: drawings of the pocket world that no training has seen.

    python3 dev.py bench real --folder FOLDER [--count 32] [--steps 50] [--cfg 7.5]

How near the reconstructions come, in PSNR of the pictures; how far sliders move the probe's readings on them, beside
generated pictures of the same prompts; and a sheet of originals, reconstructions and edits. Every part is kept in the
folder, and a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import _models  # noqa: F401  (makes ComfyUI and the pack importable)
import comfy.utils
import numpy as np
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from concept_sliders.inversion.carrying import negative_conditioning
from concept_sliders.inversion.files import load_inversion, save_inversion
from concept_sliders.inversion.inversion import Inversion
from concept_sliders.inversion.recipe import InversionRecipe
from concept_sliders.inversion.run import invert
from concept_sliders.pocket.captions import caption
from concept_sliders.pocket.drawing import draw
from concept_sliders.pocket.model import load_pocket
from concept_sliders.pocket.probe import COLUMNS, load_probe
from concept_sliders.pocket.sheet import contact_sheet
from concept_sliders.pocket.world import portraits
from concept_sliders.sliders.files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.runtime import apply_sliders
from concept_sliders.sliders.stack import Stack
from torch import Tensor

log = logging.getLogger("bench")
SEED = 2**40  # beyond every seed that a training draws people with
SLIDERS = {"age": "age", "smile": "smile", "eyes": "eye_size"}  # files of the pack, and what they turn
READ = [name for name in COLUMNS if name not in ("flat colour", "ink sketch", "pastel", "spoiled")]
GATE = Gate(0.5)  # the published one of real images: on below 500 of 1000
SHOWN = 8
METHODS = {
    "null-text, published": {"refinement": 0},
    "null-text": {"refinement": 2},
    "negative prompt": {"method": "negative prompt", "refinement": 2},
    "plain": {"method": "plain", "cfg": 1.0},
}


class Bench:
    def __init__(self, folder: Path, count: int, steps: int, cfg: float):
        self.folder, self.steps, self.cfg = folder, steps, cfg
        folder.mkdir(parents=True, exist_ok=True)
        self.probe, people = load_probe(), portraits(count, SEED)
        drawn = np.stack([draw(person) for person in people])  # (count, 64, 64, 3)
        generator = np.random.default_rng(SEED)
        with torch.inference_mode():
            self.model, self.clip, self.vae = load_pocket()
            self.images = torch.from_numpy(drawn).float() / 255
            self.latents = self.vae.encode(self.images)
            self.positive = self.encoded([caption(person, generator) for person in people])
            self.negative = self.encoded([""])
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))

    def encoded(self, texts: list[str]) -> list:
        """CONDITIONING with a row for each text."""
        entries = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in texts]
        pooled = torch.cat([options["pooled_output"] for _, options in entries])
        return [[torch.cat([encoding for encoding, _ in entries]), {"pooled_output": pooled}]]

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """(count, 64, 64, 3) pictures, made once."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            log.info("%s", name)
            torch.save(make().half(), path)
        return torch.load(path, weights_only=True).float()

    def inversion(self, name: str) -> Inversion:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            log.info("%s: inverting", name)
            recipe = InversionRecipe(**{"steps": self.steps, "cfg": self.cfg, **METHODS[name]})
            with torch.inference_mode():
                made = invert(self.model, self.latents, self.positive, self.negative, recipe)
            save_inversion(made, path)
        return load_inversion(path)

    def again(self, name: str, cfg: float | None = None, model=None) -> Tensor:
        """The pictures of an inversion, by the host's sampler."""
        found = self.inversion(name)
        latent = {"samples": found.noise}
        return self.sampled(model or self.model, negative_conditioning(found), found.sigmas, latent, cfg, False)

    def generated(self, model) -> Tensor:
        """Pictures of the same prompts from fresh noise."""
        sigmas = self.inversion("plain").sigmas
        latent = {"samples": torch.zeros_like(self.noise)}
        return self.sampled(model, self.negative, sigmas, latent, None, True)

    @torch.inference_mode()
    def sampled(self, model, negative: list, sigmas: Tensor, latent: dict, cfg: float | None, noise: bool) -> Tensor:
        euler = KSamplerSelect.execute("euler").result[0]
        out = SamplerCustom.execute(model, noise, 7, cfg or self.cfg, self.positive, negative, euler, sigmas, latent)
        return self.vae.decode(out.result[0]["samples"]).clamp(0, 1)

    def edited(self, name: str, strength: float):
        path = Path(__file__).parent.parent / "pocket" / "sliders" / f"pocket_{name}.safetensors"
        return apply_sliders(self.model, Stack.of(load_slider(path), strength, GATE))

    def reconstructions(self) -> dict[str, float]:
        """PSNR in decibels, the mean over the pictures."""
        made = {
            "VAE round trip": self.kept("round trip", lambda: self.vae.decode(self.latents)),
            "plain, sampled at cfg 1": self.kept("plain at 1", lambda: self.again("plain", 1.0)),
            f"plain, sampled at cfg {self.cfg:g}": self.kept("plain guided", lambda: self.again("plain")),
        }
        for name in ("null-text", "null-text, published", "negative prompt"):
            made[name] = self.kept(f"{name} again", lambda name=name: self.again(name))
        return {name: float(psnr(pictures, self.images).mean()) for name, pictures in made.items()}

    def movements(self, name: str) -> dict[str, dict[str, float]]:
        """How far a slider moves its own attribute and, on average, the others, from strength -1 to +1."""
        moved = {}
        for what, sample in (
            ("null-text", lambda m: self.again("null-text", model=m)),
            ("negative prompt", lambda m: self.again("negative prompt", model=m)),
            ("generated", self.generated),
        ):
            less, more = (
                self.probe.read(
                    self.kept(f"{what} {name} {s:+g}", lambda s=s, sample=sample: sample(self.edited(name, s)))
                )
                for s in (-1.0, 1.0)
            )
            by = {column: float((more[column] - less[column]).mean()) for column in READ}
            own = by.pop(SLIDERS[name])
            moved[what] = {"moved": own, "others": float(np.mean([abs(v) for v in by.values()]))}
        return moved

    def sheet(self) -> None:
        rows = [("original", self.images), ("made again", self.kept("null-text again", None))]
        rows += [(f"{name} +1", self.kept(f"null-text {name} +1", None)) for name in SLIDERS]
        rows.insert(2, ("plain inversion under guidance", self.kept("plain guided", None)))
        sheet = contact_sheet([(label, pictures[:SHOWN]) for label, pictures in rows])
        sheet.save(self.folder / "real.jpg", quality=92)


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """(B,) decibels of (B, H, W, 3) pictures in [0, 1]."""
    error = (pictures.clamp(0, 1) - originals).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="everything made is kept here")
    parser.add_argument("--count", type=int, default=32, help="drawings")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=7.5)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    comfy.utils.set_progress_bar_enabled(False)
    bench = Bench(options.folder, options.count, options.steps, options.cfg)
    figures = {"psnr": bench.reconstructions()}
    for name, value in figures["psnr"].items():
        log.info("%-32s %5.1f dB", name, value)
    figures["sliders"] = {name: bench.movements(name) for name in SLIDERS}
    for name, moved in figures["sliders"].items():
        for what, by in moved.items():
            log.info("%-6s on %-16s moved %+.3f, others %.3f", name, what, by["moved"], by["others"])
    bench.sheet()
    (options.folder / "real.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
