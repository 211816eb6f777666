"""What an inversion costs: passes of the model, seconds, and memory beyond the model.

    python3 dev.py bench invert [--models pocket sd15] [--side 32] [--steps 10]

In units of one forward pass at batch 1 of the same model. The floor of null-text is a forward and a backward pass for
every inner step made; beside it stand the plain inversion and the two predictions that guidance takes. Memory is what
an inner step keeps for backward, weights not counted, and its peak beyond the model: on CUDA by
the allocator, elsewhere by following every tensor. Beside them stand those of a training step of a slider of rank 4
on the same latent, with the slider and its optimiser; and the peaks of whole runs of both. Ends with an error
where an aim is not reached: so many times the floor, and no more memory than training.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
from contextlib import AbstractContextManager
from pathlib import Path

import _models
import torch
from _live import peak_memory
from comfy.patcher_extension import WrappersMP
from concept_sliders.inversion import inversion_run
from concept_sliders.inversion.null_text import Embedding, GuidedStep, optimise_embedding
from concept_sliders.inversion.settings import InversionSettings
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.training.loop import Training
from concept_sliders.training.trainable_layers import TrainableLayers
from concept_sliders.training.samples import Sample
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.comfy_host.refetched_weights import refetched
from concept_sliders.training.run import RunOptions, train_textual
from concept_sliders.comfy_host.borrow import for_autograd

log = logging.getLogger("bench")
BOUND = 2.5  # times the floor, the aim
CONCEPT = Concept("person", "old person", "young person", eta=4.0)


class OneSample:
    """Samples of a training: this one, again and again."""

    def __init__(self, sample: Sample):
        self.sample = sample

    def __next__(self) -> Sample:
        return self.sample

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass


class Bench:
    """One model and one latent of it, (1, C, ...)."""

    def __init__(self, name: str, side: int, steps: int):
        self.name, self.steps, self.forward, self.inner = name, steps, 0, 0
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            if name == "pocket":
                model, clip, *_ = load_pocket()
                self.shape = (1, 8, 16, 16)
                self.prompts = [
                    clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("portrait of a person", "")
                ]
            else:
                model, self.shape = _models.full_size(name), (1, 4, side, side)
                context, extra = _models.SIZES[name][1]["context_dim"], _models.SIZES[name][2]
                self.prompts = [[[torch.randn(1, 77, context, generator=generator), dict(extra)]] for _ in range(2)]
        self.latents = torch.randn(self.shape, generator=generator)
        self.model = model
        self.counted = model.clone()
        self.counted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", self.count)
        weights = (*model.model.parameters(), *model.model.buffers())
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights}

    def count(self, executor, x, *args, **kwargs):
        self.forward += len(x)
        return executor(x, *args, **kwargs)

    def unit(self) -> float:
        """Seconds of one forward pass at batch 1."""
        with borrowed(self.model):
            denoiser = Denoiser(self.model, {"": for_autograd(self.prompts[0])})
            x, sigma = self.latents.to(denoiser.device), torch.tensor(0.5, device=denoiser.device)
            denoiser.predict(x, sigma, [""])
            return statistics.median(_models.timed(lambda: denoiser.predict(x, sigma, [""])) for _ in range(5))

    def measure(self, method: str, **settings) -> dict:
        """Passes and seconds of an inversion."""
        self.forward, made, own_optimise = 0, 0, inversion_run.optimise_embedding  # type: ignore[attr-defined]

        def optimise(*given):
            nonlocal made
            fitted = own_optimise(*given)
            made += sum(map(len, fitted.losses))
            return fitted

        positive, negative = self.prompts
        recipe = InversionSettings(method=method, steps=self.steps, **settings)
        before, inversion_run.optimise_embedding = self.unit(), optimise  # type: ignore[attr-defined]
        try:
            with torch.inference_mode():
                seconds = _models.timed(lambda: invert(self.counted, self.latents, positive, negative, recipe))
        finally:
            inversion_run.optimise_embedding = own_optimise  # type: ignore[attr-defined]
        unit = statistics.mean([before, self.unit()])
        passes, floor = self.forward + made, 2 * made
        return {
            "model": self.name,
            "method": method,
            **settings,
            "inner steps": made,
            "passes": passes,
            "floor": floor,
            "of the floor": passes / floor if floor else None,
            "units of time": seconds / unit,
            "seconds": seconds,
        }

    def memory(self) -> dict:
        """Bytes of an inner step of null-text and of a training step at rank 4: kept for backward, and at most."""
        with borrowed(self.model):
            denoiser = Denoiser(self.model, {"": for_autograd(self.prompts[0])})
            sigma, x = torch.tensor(0.5, device=denoiser.device), self.latents.to(denoiser.device)
            layers = TrainableLayers(self.model, TextualRecipe(concepts=(CONCEPT,)), torch.Generator().manual_seed(0))
            sizes, hooks = self.saved()
            with differentiable(False), layers.acting(torch.ones(1, 1)), hooks:
                denoiser(x, sigma, [""])
            training = sum(sizes.values())
            context, options = for_autograd(self.prompts[1])[0]
            negative = [[context.to(x).requires_grad_(), options]]
            sizes, hooks = self.saved()
            with differentiable(False), hooks:
                denoiser.evaluate(x, sigma, [denoiser.conditions(negative, x)])
            inner = sum(sizes.values())
            peaks = self.inner_peak(denoiser, x, sigma), self.training_peak(denoiser, x, sigma)
        return {
            "model": self.name,
            "inner step": inner,
            "training step": training,
            "ratio": inner / training,
            "inner step, peak": peaks[0],
            "training step, peak": peaks[1],
            "ratio, peak": peaks[0] / peaks[1],
            **self.run_peaks(),
        }

    def run_peaks(self) -> dict:
        """Return the peaks of a whole inversion and of a whole training of two steps, in bytes."""
        positive, negative = self.prompts
        settings = InversionSettings(steps=self.steps, refinement=2, inner_steps=2)
        with torch.inference_mode(), peak_memory(self.model.load_device) as peak:
            invert(self.model, self.latents, positive, negative, settings)
        inverting = peak.bytes
        recipe = TextualRecipe(concepts=(CONCEPT,), steps=2, rollout_steps=2, samples_per_rollout=2)
        prompts = {prompt: self.prompts[n % 2] for n, prompt in enumerate((*CONCEPT.prompts(), ""))}
        with torch.inference_mode(), peak_memory(self.model.load_device) as peak:
            train_textual(self.model, prompts, recipe, self.latents, "memory", RunOptions(preview_every=0))
        return {
            "inner step, run": inverting,
            "training step, run": peak.bytes,
            "ratio, run": inverting / peak.bytes,
        }

    def inner_peak(self, denoiser: Denoiser, x: torch.Tensor, sigma: torch.Tensor) -> int:
        """Bytes that one inner step holds at most: forward, backward, and Adam's step of the embedding."""
        context, options = for_autograd(self.prompts[1])[0]

        def predict(x: torch.Tensor, embedding: Embedding, rows: torch.Tensor) -> torch.Tensor:
            return denoiser.evaluate(x, sigma, [denoiser.conditions([[embedding[0], options]], x)])[0]

        with peak_memory(denoiser.device) as peak, differentiable(False), refetched(self.model.model):
            step = GuidedStep(x, sigma, sigma / 2, x, denoiser.predict(x, sigma, [""])[0], 7.5)
            optimise_embedding(predict, (context.to(x),), step, 1, 1e-2, 0.0)
        return peak.bytes

    def training_peak(self, denoiser: Denoiser, x: torch.Tensor, sigma: torch.Tensor) -> int:
        """Return the peak of a training step of a fresh slider, in the same form."""
        sample = Sample(x, sigma, torch.zeros_like(x), torch.ones(1, 1, device=x.device), "")
        recipe = TextualRecipe(concepts=(CONCEPT,), steps=1)
        with peak_memory(denoiser.device) as peak:
            layers = TrainableLayers(self.model, recipe, torch.Generator().manual_seed(0))
            Training(denoiser, layers, OneSample(sample), recipe, torch.Generator()).run(
                lambda: False, lambda *_: None
            )
        return peak.bytes

    def saved(self) -> tuple[dict[int, int], AbstractContextManager]:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        return sizes, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("pocket", *_models.SIZES), default=["pocket", "sd15"])
    parser.add_argument("--side", type=int, default=32, help="of the full-size models' latents")
    parser.add_argument("--steps", type=int, default=10, help="of sampling")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    rows = []
    for name in options.models:
        bench = Bench(name, options.side, options.steps)
        for method, settings in (
            ("null-text", {}),
            ("null-text", {"refinement": 2}),
            ("null-text", {"inner_steps": 1}),
            ("negative prompt", {"refinement": 2}),
            ("plain", {"cfg": 1.0}),
        ):
            row = bench.measure(method, **settings)
            rows.append(row)
            log.info("%s", ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if value is not None))
        rows.append(bench.memory())
        for what, kind in (
            ("kept for backward", ""),
            ("most at once beyond the model", ", peak"),
            ("most in a whole run", ", run"),
        ):
            log.info(
                "%s %s: %.1f MB, in training at rank 4 %.1f MB: %.2f of it",
                name,
                what,
                rows[-1][f"inner step{kind}"] / 1e6,
                rows[-1][f"training step{kind}"] / 1e6,
                rows[-1][f"ratio{kind}"],
            )
        del bench
        gc.collect()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    missed = [row for row in rows if (row.get("of the floor") or 0) > BOUND or row.get("ratio, run", 0) > 1]
    if missed:
        raise SystemExit(f"More than {BOUND} times the floor, or more memory than training: {missed}")


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
