"""What an inversion costs: passes of the model, seconds, and memory beyond the model.

    python3 dev.py bench invert [--models pocket sd15] [--side 32] [--steps 10]

In units of one forward pass at batch 1 of the same model. The floor of null-text is a forward and a backward pass for
every inner step made; beside it stand the plain inversion and the two predictions that guidance takes. Memory is what
a step keeps for backward, weights not counted, beside a training step of a slider of rank 4 on the same latent.
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
from comfy.patcher_extension import WrappersMP
from concept_sliders.inversion import run
from concept_sliders.inversion.recipe import InversionRecipe
from concept_sliders.inversion.run import invert
from concept_sliders.pocket.model import load_pocket
from concept_sliders.training.denoiser import Denoiser
from concept_sliders.training.differentiable import differentiable
from concept_sliders.training.in_place import borrowed
from concept_sliders.training.new_layers import NewLayers
from concept_sliders.training.recipe import Concept, TextualRecipe
from concept_sliders.training.run import ordinary

log = logging.getLogger("bench")
BOUND = 2.5  # times the floor, the aim


class Bench:
    """One model and one latent of it, (1, C, ...)."""

    def __init__(self, name: str, side: int, steps: int):
        self.name, self.steps, self.forward, self.inner = name, steps, 0, 0
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            if name == "pocket":
                model, clip, _ = load_pocket()
                self.shape = (1, 24, 16, 16)
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
            denoiser = Denoiser(self.model, {"": ordinary(self.prompts[0])})
            x, sigma = self.latents.to(denoiser.device), torch.tensor(0.5, device=denoiser.device)
            denoiser.ask(x, sigma, [""])
            return statistics.median(_models.timed(lambda: denoiser.ask(x, sigma, [""])) for _ in range(5))

    def measure(self, method: str, **settings) -> dict:
        """Passes and seconds of an inversion."""
        self.forward, made, own_fit = 0, 0, run.fit

        def fit(*given):
            nonlocal made
            fitted = own_fit(*given)
            made += sum(map(len, fitted.losses))
            return fitted

        recipe = InversionRecipe(method=method, steps=self.steps, **settings)
        before, run.fit = self.unit(), fit
        try:
            with torch.inference_mode():
                seconds = _models.timed(lambda: invert(self.counted, self.latents, *self.prompts, recipe))
        finally:
            run.fit = own_fit
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
        """Bytes kept for backward: by an inner step of null-text, and by a training step at rank 4."""
        concept = Concept("person", "old person", "young person")
        with borrowed(self.model):
            denoiser = Denoiser(self.model, {"": ordinary(self.prompts[0])})
            sigma, x = torch.tensor(0.5, device=denoiser.device), self.latents.to(denoiser.device)
            layers = NewLayers(self.model, TextualRecipe(concepts=(concept,)), torch.Generator().manual_seed(0))
            sizes, hooks = self.saved()
            with differentiable(False), layers.acting(torch.ones(1, 1)), hooks:
                denoiser(x, sigma, [""])
            training = sum(sizes.values())
            context, options = ordinary(self.prompts[1])[0]
            denoiser.put("null", [[context.to(x).requires_grad_(), options]])
            sizes, hooks = self.saved()
            with differentiable(False), hooks:
                denoiser(x, sigma, ["null"])
        inner = sum(sizes.values())
        return {"model": self.name, "inner step": inner, "training step": training, "ratio": inner / training}

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
            ("null-text", {"inner_steps": 1}),
            ("negative prompt", {"refinement": 2}),
            ("plain", {"cfg": 1.0}),
        ):
            row = bench.measure(method, **settings)
            rows.append(row)
            log.info("%s", ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if value is not None))
        rows.append(bench.memory())
        log.info(
            "%s kept for backward: %.1f MB, a training step at rank 4 %.1f MB: %.2f of it",
            name,
            rows[-1]["inner step"] / 1e6,
            rows[-1]["training step"] / 1e6,
            rows[-1]["ratio"],
        )
        del bench
        gc.collect()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    slow = [row for row in rows if (row.get("of the floor") or 0) > BOUND]
    if slow:
        raise SystemExit(f"null-text takes more than {BOUND} times its floor: {slow}")


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
