"""A thousand sampling runs with random stacks on one small model: is anything left behind?

    python3 dev.py bench soak [--runs 1000] [--minutes 60]

Stacks of low-rank sliders, of LoHa, DoRA and differences; turned one by one or all at once; gated, ramped, swept, on
cond or uncond alone; unmerged, merged, or in mode auto; some runs cancelled in the middle, and the model unloaded now
and then. Reports the process's memory meanwhile, and how far results are from those of a model that has no history.
Ends with status 1 where they are further apart than rounding, memory goes on growing after the first tenth of the
runs, or the model's own weights have changed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass

import _models
import comfy.model_management
import comfy.model_patcher
import torch
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

log = logging.getLogger("soak")
SLIDERS, LAYERS, SMALL = 9, 150, {"model_channels": 32, "num_heads": 4}
STEPS, ROWS = 5, 3
# Merged weights are updated up to 64 times before they are built anew, each time rounded once more (see
# `merged_weights`)
FURTHEST = 1e-4
COMPARED_EVERY = 10
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


def other_kinds(model, names: dict[str, str]) -> list[Slider]:
    """Three sliders that are no plain products: a LoHa, a DoRA, and differences of weights."""
    r = torch.Generator().manual_seed(99)

    def some(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(shape, generator=r)

    kinds: dict[str, dict[str, Adapter]] = {"LoHa": {}, "DoRA": {}, "difference": {}}
    linear = [(p, n) for p, n in names.items() if model.model.get_submodule(p).weight.ndim == 2]
    for path, name in linear[:40]:
        outputs, inputs = weight_shape(model.model.get_submodule(path), name)
        factors = {f"hada_w{i}_{p}": some(outputs, 2) if p == "a" else some(2, inputs) for i in (1, 2) for p in "ab"}
        kinds["LoHa"][name] = Adapter(factors)
        size = model.model.get_submodule(path).weight.detach().norm(dim=0, keepdim=True)
        product = {"lora_up.weight": some(outputs, 2), "lora_down.weight": some(2, inputs)}
        kinds["DoRA"][name] = Adapter({**product, "dora_scale": size * (1 + some(1, inputs))})
        kinds["difference"][name] = Adapter({"diff": some(outputs, inputs)})
    return [Slider(kind, layers) for kind, layers in kinds.items()]


@dataclass(frozen=True)
class Drawn:
    """What one run is to be. cancelled: the step after which it is cancelled, or None. unloaded: before it."""

    stack: Stack
    mode: str
    cancelled: int | None
    unloaded: bool


class Stacks:
    """Random runs: one strength turned as often as all of them, each mode in turn."""

    def __init__(self, sliders: list[Slider], seed: int):
        self.sliders, self.generator = sliders, torch.Generator().manual_seed(seed)
        self.strengths = torch.zeros(len(sliders))

    def next(self) -> Drawn:
        if self._chance(0.5):
            self.strengths[self._below(len(self.sliders))] = torch.randn((), generator=self.generator)
        else:
            chosen = torch.rand(len(self.sliders), generator=self.generator) < 0.6
            self.strengths = torch.randn(len(self.sliders), generator=self.generator) * chosen
        gates = (None, None, None, Gate(0.3), Gate(0.3, 0.8), Gate(0.2, 1.0, ramp=0.4))
        gate = gates[self._below(len(gates))]
        stack = _models.stack_of(self.sliders, self.strengths.tolist(), gate)
        if self._chance(0.15):
            stack = stack.swept(self._below(len(stack)), torch.randn(ROWS, generator=self.generator).tolist())
        if self._chance(0.15):
            stack = stack.restricted_to(("cond", "uncond")[self._below(2)])
        mode = ("auto", "unmerged", "merged")[self._below(3)]
        return Drawn(stack, mode, self._below(STEPS) if self._chance(0.1) else None, self._chance(0.05))

    def _chance(self, probability: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < probability)

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))


def run_of(model, drawn: Drawn, sampler: _models.Sampler, seed: int) -> torch.Tensor | None:
    """Return the latents of a run, or None where it was cancelled."""

    def done(step: int, *_) -> None:
        if step == drawn.cancelled:
            raise comfy.model_management.InterruptProcessingException

    torch.manual_seed(seed)
    acted = apply_sliders(model, drawn.stack, drawn.mode)
    try:
        return sampler.result(acted, rows=drawn.stack.batch_size, callback=done)
    except comfy.model_management.InterruptProcessingException:
        return None


def megabytes() -> float:
    """Return the memory that this process has now."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(runs: int, seconds: float) -> tuple[float, float, bool]:
    """Run up to `runs` times, for so many seconds at most, and look at the memory after each tenth of either.

    Returns the megabytes grown since the first look, how far a result was from that of a fresh model at most, and
    True if the model's own weights are unchanged.
    """
    began = time.monotonic()
    model, sampler = small_model(), _models.Sampler("sd15", 8, STEPS)
    own = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    names = _models.some_layers(model, LAYERS)
    sliders = [_models.random_slider(model, names, seed) for seed in range(SLIDERS)] + other_kinds(model, names)
    stacks, worst, sizes, kinds = Stacks(sliders, seed=1), 0.0, [], Counter()
    for run in range(1, runs + 1):
        drawn = stacks.next()
        if drawn.unloaded:
            comfy.model_management.unload_all_models()
        result = run_of(model, drawn, sampler, run)
        kinds.update(_kinds_of(drawn))
        if result is not None and run % COMPARED_EVERY == 0:
            fresh = run_of(small_model(), drawn, sampler, run)
            assert fresh is not None
            worst = max(worst, ((result - fresh).norm() / fresh.norm()).item())
        done = max(run / runs, (time.monotonic() - began) / seconds)
        if 10 * done >= len(sizes) + 1:
            sizes.append(megabytes())
            log.info("%5d runs: %.0f MB, %.1e from a model without history", run, sizes[-1], worst)
        if done >= 1:
            break
    log.info("of them: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    comfy.model_management.unload_all_models()
    untouched = all(torch.equal(tensor, own[name]) for name, tensor in model.model.state_dict().items())
    return max(sizes) - sizes[0], worst, untouched


def _kinds_of(drawn: Drawn) -> list[str]:
    stack = drawn.stack
    told = {
        "gated": stack.is_gated,
        "swept": stack.batch_size > 1,
        "on cond or uncond": any(p.cond_or_uncond != "both" for p in stack),
        "cancelled": drawn.cancelled is not None,
        "after unloading": drawn.unloaded,
        drawn.mode: True,
    }
    return [kind for kind, is_so in told.items() if is_so]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="default: 1000")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end sooner, after so many minutes")
    options = parser.parse_args()
    if options.runs < 1 or not options.minutes > 0:
        parser.error("--runs is at least 1, and --minutes above 0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    grown, worst, untouched = soak(options.runs, 60 * options.minutes)
    failures = [] if untouched else ["the model's own weights have changed"]
    if grown > GROWTH_MB:
        failures.append(f"memory grew by {grown:.0f} MB; {GROWTH_MB} are allowed")
    if worst > FURTHEST:
        failures.append(f"results are {worst:.1e} from those without history; {FURTHEST:.0e} is allowed")
    for failure in failures:
        log.error("Failed: %s", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
