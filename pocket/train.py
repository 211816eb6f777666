"""Makes the pocket models from nothing: `python3 dev.py module pocket.train --folder FOLDER`.

In order: drawings, VAE, joint encoder, probe, UNet, decoder, turbo. Each stage goes on from its last checkpoint,
and one that is complete is not begun again; the same command therefore resumes. `--only` names stages to run now.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from .models.autoencoder import Autoencoder
from .models.loading import FOLDER, LORAS, TURBO, load_autoencoder, weights_of
from .training import joint, probe, run, turbo, unet, vae
from .training.places import place_weights
from .world.pool import HELD_OUT_SEED, TRAINING_SEED, Pool, drawn_pool, people

STAGES = ("drawings", "vae", "joint", "probe", "unet", "decoder", "turbo")
IN_EIGHT_BITS = ("text", "vision", "unet")
DRAWINGS, HELD_OUT = 79_872, 4_096
log = logging.getLogger(__name__)


class Maker:
    """Runs stages in one folder and exports what they make. Stages read what earlier ones exported."""

    def __init__(self, options: argparse.Namespace):
        self.folder, self.weights, self.seed = options.folder, options.weights, options.seed
        self.steps, self.goes_on = options.steps, options.go_on
        self.count, self.pool_folder = options.drawings, options.pool

    @cached_property
    def pool(self) -> Pool:
        return drawn_pool(self.count, TRAINING_SEED, self.pool_folder)

    def drawings(self) -> None:
        log.info("%d drawings", len(self.pool))

    def vae(self) -> None:
        torch.manual_seed(self.seed)
        network = load_autoencoder(self.weights) if self.goes_on else Autoencoder()
        network = vae.train_together(network, self.pool, self.folder, self.seed, self._plan(vae.TOGETHER))
        self._export("vae", vae.normalised(network, self.pool).state_dict(), "vae")

    def joint(self) -> None:
        stored = (weights_of(self.weights, "text"), weights_of(self.weights, "vision")) if self.goes_on else None
        trained = joint.train_joint(self.pool, self.folder, self.seed, self._plan(joint.PLAN), stored)
        self._export("text", trained.text.state_dict(), "joint")
        self._export("vision", trained.vision.state_dict(), "joint")

    def probe(self) -> None:
        trained = probe.train_probe(self.pool, self.folder, self.seed, self._plan(probe.PLAN))
        held_out = drawn_pool(HELD_OUT, HELD_OUT_SEED, self.pool_folder)
        self._export("probe", trained.state_dict(), "probe", held_out=probe.figures_on(trained, held_out))

    def unet(self) -> None:
        latents = unet.encoded(load_autoencoder(self.weights), self.pool, self.folder / "latents.npy")
        stored = weights_of(self.weights, "unet") if self.goes_on else None
        student = unet.build_student(weights_of(self.weights, "text"), self.seed, stored)
        student.places = place_weights(load_autoencoder(self.weights), self.seed)
        trained = unet.train_unet(student, latents, self.pool, self.folder, self.seed, self._plan(unet.PLAN))
        self._export("unet", trained.unet.state_dict(), "unet")

    def decoder(self) -> None:
        trained = vae.train_decoder(
            load_autoencoder(self.weights), self.pool, self.folder, self.seed, self._plan(vae.DECODER)
        )
        self._export("vae", trained.state_dict(), "decoder")

    def turbo(self) -> None:
        walks = turbo.WALKS if self.steps is None else min(turbo.WALKS, 2 * self.steps)
        known = people(self.count, TRAINING_SEED)
        plan, part = self._plan(turbo.PLAN), f"{LORAS}/{TURBO.partition('.')[0]}"
        stored = weights_of(self.weights, part) if self.goes_on else None
        trained = turbo.train_turbo(self.weights, known, self.folder, self.seed, plan, walks, stored)
        self._export(part, trained, "turbo")

    def _plan(self, plan: run.Plan) -> run.Plan:
        return replace(plan, steps=self.steps, warm_up=min(plan.warm_up, self.steps // 4)) if self.steps else plan

    def _export(self, part: str, weights: dict[str, torch.Tensor], state: str, **notes: object) -> None:
        notes = {**run.facts_of(self.folder / f"{state}.pt"), "drawings": self.count, "seed": self.seed, **notes}
        told = {name: json.dumps(value) for name, value in notes.items()}
        run.exported(weights, self.weights / f"{part}.safetensors", told, eight_bits=part in IN_EIGHT_BITS)
        log.info("%s: %s", part, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints are kept here")
    parser.add_argument("--pool", type=Path, help="drawings are kept here (default: FOLDER/pool)")
    parser.add_argument("--weights", type=Path, default=FOLDER, help="where the models are stored")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="default: all, in order")
    parser.add_argument("--drawings", type=int, default=DRAWINGS)
    parser.add_argument("--steps", type=int, help="of every stage, for a trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--go-on", action="store_true", help="VAE, joint encoder, UNet and turbo begin with the stored weights"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.pool = options.pool or options.folder / "pool"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    maker = Maker(options)
    for stage in STAGES:
        if stage in options.only:
            getattr(maker, stage)()


if __name__ == "__main__":
    main()
