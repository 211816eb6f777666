"""A thousand sampling runs with random stacks on one small model: is anything left behind?

    python3 dev.py bench soak [--runs 1000]

Reports the process's memory along the way, and how far results are from those of a model that has no history. Ends
with status 1 where they are further apart than rounding, or memory goes on growing after the first tenth of the runs.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys

import _models
import comfy.model_patcher
import torch
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.runtime import apply_sliders
from concept_sliders.sliders.stack import Stack

log = logging.getLogger("soak")
SLIDERS, SMALL = 12, {"model_channels": 32, "num_heads": 4}
# Merged weights are updated up to 64 times before they are built anew, each time rounded once more (see `merged`)
FURTHEST = 1e-4
GROWTH_MB = 64  # what the allocator may keep over and above, of some 500 MB


def small_model() -> comfy.model_patcher.ModelPatcher:
    config_class, config, _ = _models.SIZES["sd15"]
    model = config_class({**_models.UNET, **config, **SMALL, "dtype": torch.float32}).get_model({})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        spread = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.0
        random = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(random * spread + float(parameter.ndim == 1))
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)


class Stacks:
    """Random stacks: one strength turned as often as all of them, some sliders gated, each way in its turn."""

    def __init__(self, sliders, seed: int):
        self.sliders, self.generator = sliders, torch.Generator().manual_seed(seed)
        self.strengths = torch.zeros(len(sliders))

    def next(self) -> tuple[Stack, str]:
        draw = torch.rand(3, generator=self.generator)
        if draw[0] < 0.5:
            turned = int(torch.randint(len(self.sliders), (), generator=self.generator))
            self.strengths[turned] = torch.randn((), generator=self.generator)
        else:
            chosen = torch.rand(len(self.sliders), generator=self.generator) < 0.6
            self.strengths = torch.randn(len(self.sliders), generator=self.generator) * chosen
        gate = Gate(0.3) if draw[1] < 0.3 else None
        placed = (Stack.of(s, float(v), gate) for s, v in zip(self.sliders, self.strengths))
        return sum(placed, Stack()), ("auto", "by rows", "merged")[int(draw[2] * 3)]


def megabytes() -> float:
    """The memory that this process has now."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(runs: int) -> tuple[float, float]:
    """(megabytes grown after the first tenth, the furthest that a result was from that of a fresh model)."""
    model, sampler = small_model(), _models.Sampler("sd15", 8, 5)
    sliders = [_models.random_slider(model, _models.some_layers(model, 150), seed) for seed in range(SLIDERS)]
    stacks, worst, sizes = Stacks(sliders, seed=1), 0.0, []
    for run in range(1, runs + 1):
        stack, way = stacks.next()
        torch.manual_seed(run)
        after_many = sampler.result(apply_sliders(model, stack, way))
        if run % max(1, runs // 10) == 0:
            torch.manual_seed(run)
            fresh = sampler.result(apply_sliders(small_model(), stack, way))
            worst = max(worst, ((after_many - fresh).norm() / fresh.norm()).item())
            del fresh
            sizes.append(megabytes())
            log.info("%5d runs: %.0f MB, %.1e from a model without history", run, sizes[-1], worst)
    return max(sizes) - sizes[0], worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    grown, worst = soak(options.runs)
    failures = []
    if grown > GROWTH_MB:
        failures.append(f"memory grew by {grown:.0f} MB; {GROWTH_MB} are allowed")
    if worst > FURTHEST:
        failures.append(f"results are {worst:.1e} from those without history; {FURTHEST:.0e} is allowed")
    for failure in failures:
        log.error("Failed: %s", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
