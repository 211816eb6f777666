"""What an iteration of training costs: ours beside the published schedule, on the same model in one run.

    python3 dev.py bench train [--models pocket sd15 sdxl] [--side 16] [--preserve 0 2 6]

In units of one forward pass at batch 1 of the same model, and in seconds. The published schedules are written from
their description: the textual one rolls out afresh in every iteration, over 50 steps up to a random one, and asks in
doubled batches; the visual one encodes both images anew, asks for two predictions it never uses and collects
garbage: what each of these takes is said as well; and so is the floor, a forward and a backward pass over both
images in one batch and nothing else. Also: how much memory a training step takes beyond the model, without and with
gradient checkpointing.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import _models
import comfy.model_management
import torch
from _published import STEPS, PublishedSamples, PublishedTraining, PublishedVisualTraining
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.training.loop import Training
from concept_sliders.training.trainable_layers import TrainableLayers
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import VISUAL_METHODS, TextualRecipe, VisualRecipe
from concept_sliders.comfy_host.gradient_checkpointing import checkpointed
from concept_sliders.training.textual_samples import POOL, TextualSamples
from concept_sliders.training.visual_samples import LatentSet, VisualSamples

log = logging.getLogger("bench")
CONCEPT = Concept("person", "old person", "young person", eta=4.0)
PHRASES = ("male", "female", "with glasses", "without glasses", "smiling", "frowning")
TRAININGS = ("textual", "visual", "memory")


class Cost(NamedTuple):
    """Of one iteration: forward passes at batch 1, and seconds."""

    units: float
    seconds: float


class Bench:
    """One model, borrowed for training. shape: (1, C, ...) of the latents."""

    def __init__(self, name: str, side: int):
        self.name, prompts = name, (*replace(CONCEPT, preserve=PHRASES).prompts(), *CONCEPT.prompts(), "")
        with torch.inference_mode():
            if name == "pocket":
                self.model, clip, vae, _ = load_pocket()
                self.shape = (1, 8, 16, 16)
                self.encode = lambda: vae.encode(torch.zeros(1, 128, 128, 3))
                encode = clip.encode_from_tokens_scheduled
                self.conditionings = {p: encode(clip.tokenize(p)) for p in prompts}
            else:
                self.model, self.shape = _models.full_size(name), (1, 4, side, side)
                vae, device = _models.full_size_vae(), comfy.model_management.get_torch_device()
                self.encode = lambda: vae.encode(torch.zeros(1, 3, 8 * side, 8 * side, device=device))
                context, extra = _models.SIZES[name][1]["context_dim"], _models.SIZES[name][2]
                self.conditionings = {p: [[torch.randn(1, 77, context), dict(extra)]] for p in prompts}
        self.rows: list[dict] = []

    def measure(self, options: argparse.Namespace) -> None:
        with borrowed(self.model):
            self.denoiser = Denoiser(self.model, self._plain())
            self.x = torch.randn(self.shape, device=self.denoiser.device)
            self.unit = self._unit()
            two = self._unit(2) / self.unit
            log.info(
                "%s: a forward pass at batch 1 takes %.3f s, at batch 2 %.2f times that", self.name, self.unit, two
            )
            if "textual" in options.trainings:
                self._textual(options.published, options.own, options.preserve)
            if "visual" in options.trainings:
                self._visual(max(2, options.own // 8))  # they are all alike
            if "memory" in options.trainings:
                self._memory()

    def _plain(self) -> dict[str, list]:
        return {
            p: [[t.clone(), {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in o.items()}] for t, o in c]
            for p, c in self.conditionings.items()
        }

    def _unit(self, rows: int = 1) -> float:
        x = self.x.repeat(rows, *(1 for _ in self.shape[1:]))

        def once() -> None:
            with torch.no_grad():
                self.denoiser(x, torch.tensor(0.5, device=self.denoiser.device), [CONCEPT.target])

        once()
        return statistics.median(_models.timed(once) for _ in range(5))

    def _textual(self, published_iterations: int, own_iterations: int, preserve: list[int]) -> None:
        """Compare the textual trainings.

        preserve: numbers of preserved phrases. The published schedule draws one of them an iteration: its cost is the
        same with any number.
        """
        recipe = TextualRecipe(concepts=(CONCEPT,), steps=10**6)
        generator = torch.Generator().manual_seed(0)
        layers = TrainableLayers(self.model, recipe, generator)
        samples = PublishedSamples(self.denoiser, layers, recipe, self.shape, generator, doubled=True)
        published = PublishedTraining(self.denoiser, layers, samples, recipe, generator)
        # a rollout of a fixed length, the mean of the published ones, so that few iterations are enough
        samples.steps = STEPS // 2
        before = self._cost(published, published_iterations)
        for phrases in preserve:
            recipe = replace(recipe, concepts=(replace(CONCEPT, preserve=PHRASES[:phrases]),))
            own = TextualSamples(self.denoiser, layers, recipe, self.shape, generator)
            # from a full pool on, whole trajectories, half of them with the slider on
            ours = self._cost(Training(self.denoiser, layers, own, recipe, generator), own_iterations, warm=POOL)
            self._note(f"textual, {phrases} preserved", before, ours)

    def _visual(self, iterations: int) -> None:
        latents = torch.randn(2, *self.shape[1:])
        sets = [LatentSet(latents, (-1.0, 1.0), CONCEPT.target)]
        generator = torch.Generator().manual_seed(0)
        layers = TrainableLayers(self.model, VisualRecipe(), generator)
        recipes = {method: VisualRecipe(steps=10**6, method=method) for method in VISUAL_METHODS}

        def parts(method: str) -> tuple[Any, ...]:
            samples = VisualSamples(self.denoiser, sets, recipes[method], generator)
            return self.denoiser, layers, samples, recipes[method], generator

        published = PublishedVisualTraining(*parts("noise"))
        published.encode, published.clock = torch.no_grad()(self.encode), _models.now
        before = self._cost(published, iterations)
        spent = {part: seconds / (iterations + 1) / self.unit for part, seconds in published.spent.items()}
        floor = self._floor(latents, iterations)
        for method in VISUAL_METHODS:
            self._note(f"visual, {method}", before, self._cost(Training(*parts(method)), iterations), spent, floor)

    def _floor(self, latents: torch.Tensor, iterations: int) -> float:
        """Units of the two passes over a pair that its training cannot do without."""
        sigma = torch.tensor(0.5, device=self.denoiser.device)

        def once() -> None:
            with differentiable():
                x = latents.clone().to(self.denoiser.device).requires_grad_()
                self.denoiser(x, sigma, [CONCEPT.target]).square().mean().backward()

        once()
        return statistics.median(_models.timed(once) for _ in range(iterations)) / self.unit

    def _cost(self, training: Training, iterations: int, warm: int = 1) -> Cost:
        """Of an iteration, the unit measured anew beside it."""
        _advance(training, warm)
        unit = self._unit()
        total = _models.timed(lambda: _advance(training, iterations))
        self.unit = statistics.median([unit, self._unit()])
        return Cost(total / iterations / self.unit, total / iterations)

    def _note(
        self, what: str, before: Cost, now: Cost, spent: dict[str, float] | None = None, floor: float = 0.0
    ) -> None:
        """before: the published one. spent: units of it that went into what training could do without."""
        published, ours = before.units, now.units
        row = {"model": self.name, "training": what, "published": published, "ours": ours, "ratio": published / ours}
        seconds = {"published_seconds": before.seconds, "seconds": now.seconds}
        self.rows.append({**row, "of which": spent, "floor": floor, **seconds})
        log.info("%-7s %-16s published %.1f units, ours %.2f: %.1f times fewer", *row.values())
        log.info("%24s published %.3f s an iteration, ours %.3f s", "", *seconds.values())
        if spent:
            parts = ", ".join(f"{part} {units:.2f}" for part, units in spent.items())
            alike = published - spent["encoding"] - spent["garbage"]
            log.info("%24s of which %s; without encoding and garbage %.1f times", "", parts, alike / ours)
            log.info("%24s ours against its floor of %.2f: %.2f", "", floor, ours / floor)

    def _memory(self) -> None:
        """Bytes that a training step keeps for backward, weights of the model not counted."""
        recipe = TextualRecipe(concepts=(CONCEPT,))
        layers = TrainableLayers(self.model, recipe, torch.Generator().manual_seed(0))
        weights = {t.untyped_storage().data_ptr() for t in self.model.model.parameters()}
        kept = {}
        for name in ("once", "twice"):
            sizes: dict[int, int] = {}

            def pack(tensor: torch.Tensor, sizes=sizes) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    sizes[storage.data_ptr()] = storage.nbytes()
                return tensor

            hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            sigma = torch.tensor(0.5, device=self.denoiser.device)
            with differentiable(), layers.acting(torch.ones(1, 1)), hooks:
                if name == "twice":
                    with checkpointed(self.model.model.diffusion_model):
                        self.denoiser(self.x, sigma, [CONCEPT.target])
                else:
                    self.denoiser(self.x, sigma, [CONCEPT.target])
            kept[name] = sum(sizes.values()) / 1e6
        slider = sum(p.numel() * p.element_size() for p in layers.parameters()) / 1e6
        self.rows.append({"model": self.name, "megabytes": kept, "slider_megabytes": slider})
        log.info(
            "%-7s kept for backward: %.0f MB, with gradient checkpointing %.0f MB; the slider %.1f MB, nine times "
            "that with its gradient, optimiser, average, and what a run falls back on",
            self.name,
            *kept.values(),
            slider,
        )


def _advance(training: Training, steps: int) -> None:
    last = training.progress.steps + steps
    training.run(lambda: training.progress.steps >= last, lambda progress, sample: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("pocket", *_models.SIZES), default=["pocket", "sd15", "sdxl"])
    parser.add_argument("--side", type=int, default=16, help="of the full-size models' latents")
    parser.add_argument("--published", type=int, default=3, help="iterations of the published textual schedule")
    parser.add_argument("--own", type=int, default=48, help="iterations of ours: whole trajectories")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="some of them")
    preserve_help = f"numbers of preserved phrases, 0 to {len(PHRASES)}"
    parser.add_argument(
        "--preserve", type=int, nargs="+", default=[0, 2, 6], choices=range(len(PHRASES) + 1), help=preserve_help
    )
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    rows = []
    for name in options.models:
        bench = Bench(name, options.side)
        bench.measure(options)
        rows += bench.rows
        del bench
        gc.collect()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
