"""What sliders cost: ours, both modes, against ComfyUI's own and the public code's.

    python3 dev.py bench runtime [--size sd15] [--counts 1 5 10 50] [--steps 4] [--image 20]

Every figure comes from whole sampling runs with CFG, step by step, in units of one bare CFG step of the same
machine in the same minutes. Random weights: their values do not matter for what they cost.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import _models  # first: it makes ComfyUI importable
import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from _models import stack_of, tensors_of
from _products import shared_down, shortest, two_products
from concept_sliders.sliders.gate import Gate
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

LAYERS = 150
GATE = Gate(0.4)
log = logging.getLogger("bench")


class Bench:
    """One model size; `rows` collects what is measured, by mode and number of sliders."""

    def __init__(self, options: argparse.Namespace):
        self.model = _models.full_size(options.size)
        self.sampler = _models.Sampler(options.size, options.side, options.steps)
        self.names = _models.some_layers(self.model, LAYERS)
        self.options, self.rows = options, []
        self.sampler.run(lambda: self.model)
        run = self.sampler.run(lambda: self.model)
        self.bare = run.step
        log.info("one bare CFG step: %.3f s", self.bare)
        # what a run costs before its first step, and how unevenly steps come, without any slider
        self.note("no slider", 0, step=1, change=run.lead(run.step) / run.step, gate=run.longest(run.step) / run.step)

    def sliders(self, count: int) -> tuple[list[Slider], list[float], list[float]]:
        """Sliders, their strengths, and the strengths with one of them changed."""
        made = [_models.random_slider(self.model, self.names, seed) for seed in range(count)]
        return made, [0.5] * count, [0.9, *[0.5] * (count - 1)]

    def note(self, mode: str, count: int, **figures: float) -> None:
        figures = {name: round(value, 4) for name, value in figures.items()}
        self.rows.append({"mode": mode, "sliders": count, **figures})
        log.info("%-24s %3d  %s", mode, count, "  ".join(f"{k} {v}" for k, v in figures.items()))

    def against_bare(self, prepare, **how) -> tuple[float, _models.Run]:
        """A step's cost in bare steps, taken in turn with bare runs, and the last run."""
        ratios = []
        for _ in range(self.options.repeats):
            bare = self.sampler.run(lambda: self.model).step
            run = self.sampler.run(prepare, **how)
            ratios.append(run.step / bare)
            self.bare = bare
        return statistics.median(ratios), run

    def ours(self, mode: str, count: int) -> None:
        state_of(self.model.model).clear()
        sliders, before, after = self.sliders(count)
        first = self.sampler.run(lambda: apply_sliders(self.model, stack_of(sliders, before), mode))
        changed = self.sampler.run(lambda: apply_sliders(self.model, stack_of(sliders, after), mode))
        step, _ = self.against_bare(lambda: apply_sliders(self.model, stack_of(sliders, after), mode))
        gated = self.sampler.run(lambda: apply_sliders(self.model, stack_of(sliders, after, GATE), mode))
        cached = state_of(self.model.model).size_bytes
        factors = sum(s.size_bytes for s in sliders)
        self.note(
            f"ours, {mode}",
            count,
            step=step,
            change=changed.lead(changed.step) / self.bare,
            gate=gated.longest(step * self.bare) / self.bare,
            first=first.lead(first.step) / self.bare,
            gigabytes=(cached + factors) / 1e9,
        )

    def mixed_gates(self, count: int) -> None:
        """Half of the sliders act from the start, half from the gate on: the switch in the first run, and later."""
        sliders, _, after = self.sliders(count)
        half = count // 2
        stack = stack_of(sliders[:half], after[:half]) + stack_of(sliders[half:], after[half:], GATE)
        for mode in ("unmerged", "merged"):
            state_of(self.model.model).clear()
            runs = [self.sampler.run(lambda m=mode: apply_sliders(self.model, stack, m)) for _ in range(2)]
            first, later = ((run.longest(run.step)) / self.bare for run in runs)
            cached = state_of(self.model.model).size_bytes + sum(s.size_bytes for s in sliders)
            self.note(f"half gated, {mode}", count, first=first, gate=later, gigabytes=cached / 1e9)

    def shared_down(self, count: int) -> None:
        """Queries, keys and values of self-attention: three down-projections, or one of their joined inputs."""
        inputs = {shape for path, shape in self._inputs().items() if path.endswith("attn1.to_q")}
        dtype = self.model.model.get_dtype()
        ratios = [shared_down(shape, 4 * count, self.model.load_device, dtype) for shape in inputs]
        if ratios:
            self.note("q, k, v: one down / three", count, step=statistics.median(ratios))

    def floor(self, count: int) -> None:
        """The bare step and the two products of every layer, and nothing else."""
        shapes = self._inputs()
        rank, seconds = 4 * count, 0.0
        for path, shape in shapes.items():
            module = self.model.model.get_submodule(path)
            x = torch.randn(shape, device=self.model.load_device, dtype=module.weight.dtype)
            down = torch.randn(rank, *module.weight.shape[1:]).to(x)
            up = torch.randn(module.weight.shape[0], rank, *(1 for _ in module.weight.shape[2:])).to(x)
            seconds += shortest(lambda x=x, d=down, u=up, m=module: two_products(m, x, d, u))
        self.note("floor: two products", count, step=1 + seconds / self.bare)

    def _inputs(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        with ExitStack() as stack:
            for path in self.names:
                module = self.model.model.get_submodule(path)
                seen = module.register_forward_pre_hook(
                    lambda m, a, p=path: shapes.setdefault(p, a[0].shape) and None
                )
                stack.callback(seen.remove)
            self.sampler.run(lambda: self.model, steps=1)
        return shapes

    def public_code(self, count: int) -> None:
        """One forward hook for each slider and layer, as the public code stacks them."""
        sliders, _, _ = self.sliders(count)
        device, dtype = self.model.load_device, self.model.model.get_dtype()
        with ExitStack() as stack:
            for slider in sliders:
                for path, name in self.names.items():
                    layer = slider.layers[name]
                    down, up = layer.down.to(device, dtype), layer.up.to(device, dtype)
                    module = self.model.model.get_submodule(path)
                    hook = module.register_forward_hook(
                        lambda m, a, y, d=down, u=up: y + 0.5 * two_products(m, a[0], d, u)
                    )
                    stack.callback(hook.remove)
            run = self.sampler.run(lambda: self.model)
        bare = self.sampler.run(lambda: self.model).step
        self.note("one hook a slider", count, step=run.step / bare)

    def stock_patches(self, count: int) -> None:
        sliders, before, after = self.sliders(count)
        files = [tensors_of(slider) for slider in sliders]
        first = self.sampler.run(partial(self._patched, files, before))
        changed = self.sampler.run(partial(self._patched, files, after))
        backup = sum(b.weight.numel() * b.weight.element_size() for b in self.model.backup.values())
        self.note(
            "stock LoRA loaders",
            count,
            step=changed.step / self.bare,
            change=changed.lead(changed.step) / self.bare,
            first=first.lead(first.step) / self.bare,
            gigabytes=backup / 1e9,
        )
        self.sampler.run(lambda: self.model, steps=1)  # ComfyUI gives the weights back

    def _patched(self, files: list[dict[str, torch.Tensor]], strengths: list[float], load=None):
        """The model behind a chain of stock loaders. load: ComfyUI's function, for weight patches by default."""
        model, load = self.model, load or comfy.sd.load_lora_for_models
        for tensors, strength in zip(files, strengths, strict=True):
            model, _ = load(model, None, tensors, strength, 0.0)
        return model

    def hooked(self, sliders: list[Slider], strengths: list[float]):
        """The model and a conditioning with stock weight hooks that open at the gate."""
        hooks = None
        for slider, strength in zip(sliders, strengths, strict=True):
            made = comfy.hooks.create_hook_lora(tensors_of(slider), strength_model=strength, strength_clip=0.0)
            hooks = made if hooks is None else hooks.clone_and_combine(made)
        frames = comfy.hooks.HookKeyframeGroup()
        for value, start in ((0.0, 0.0), (1.0, GATE.start)):
            frames.add(comfy.hooks.HookKeyframe(strength=value, start_percent=start))
        hooks.set_keyframes_on_hooks(frames)
        self.sampler.negative = comfy.hooks.set_hooks_for_conditioning(self.plain_negative, hooks)
        return self.model.clone(), comfy.hooks.set_hooks_for_conditioning(self.sampler.positive, hooks)

    def stock_gate(self, count: int, steps: int | None = None) -> _models.Run:
        sliders, _, after = self.sliders(count)
        self.plain_negative = self.sampler.negative
        try:
            run = self.sampler.run(lambda: self.hooked(sliders, after), steps)
        finally:
            self.sampler.negative = self.plain_negative
        if steps is None:
            lead, switch = run.lead(self.bare) / self.bare, run.longest(self.bare) / self.bare
            # weights are rewritten in every run: the first is like all others
            self.note("stock hooks, gated", count, step=run.step / self.bare, change=lead, gate=switch, first=lead)
        return run

    def stock_bypass(self, count: int) -> None:
        sliders, before, after = self.sliders(count)
        files = [tensors_of(slider) for slider in sliders]
        load = comfy.sd.load_bypass_lora_for_models
        first = self.sampler.run(partial(self._patched, files, before, load))
        step, run = self.against_bare(partial(self._patched, files, after, load))
        self.note(
            "stock bypass loader",
            count,
            step=step,
            change=run.lead(run.step) / self.bare,
            first=first.lead(first.step) / self.bare,
            gigabytes=sum(t.numel() * t.element_size() for tensors in files for t in tensors.values()) / 1e9,
        )

    def image(self, count: int, steps: int) -> None:
        """A whole image after one strength has changed."""
        sliders, before, after = self.sliders(count)
        bare = self.sampler.run(lambda: self.model, steps).total
        for mode, gate in (("merged", None), ("unmerged", None), ("merged", GATE), ("unmerged", GATE)):
            earlier, later = (stack_of(sliders, strengths, gate) for strengths in (before, after))
            self.sampler.run(partial(apply_sliders, self.model, earlier, mode), 1)
            run = self.sampler.run(partial(apply_sliders, self.model, later, mode), steps)
            self.note(f"image, {mode}{', gated' if gate else ''}", count, image=run.total / bare)

        if count > self.options.stock_up_to:
            return
        files = [tensors_of(slider) for slider in sliders]
        bypassed = partial(self._patched, files, after, comfy.sd.load_bypass_lora_for_models)
        self.note("image, stock bypass", count, image=self.sampler.run(bypassed, steps).total / bare)
        patched = partial(self._patched, files, after)
        self.note("image, stock loaders", count, image=self.sampler.run(patched, steps).total / bare)
        self.sampler.run(lambda: self.model, steps=1)
        self.note("image, stock hooks, gated", count, image=self.stock_gate(count, steps).total / bare)

    def sweep(self, values: int) -> None:
        """Several strengths of one slider: a batch of rows, against as many stock runs."""
        sliders, _, _ = self.sliders(1)
        strengths = [i - values / 2 for i in range(values)]
        swept = Stack.of(sliders[0]).swept(0, strengths)
        ours = self.sampler.run(lambda: apply_sliders(self.model, swept), rows=values).total
        tensors, stock = tensors_of(sliders[0]), 0.0
        for value in strengths:
            stock += self.sampler.run(partial(self._patched, [tensors], [value])).total
        self.note(f"sweep of {values}, stock / ours", 1, step=stock / ours)


def ours(bench: Bench, count: int) -> None:
    bench.ours("unmerged", count)
    bench.ours("merged", count)
    if count > 1:
        bench.mixed_gates(count)


MODES = {
    "floor": Bench.floor,
    "ours": ours,
    "shared down": Bench.shared_down,
    "one hook each": Bench.public_code,
    "stock loaders": Bench.stock_patches,
    "stock hooks": Bench.stock_gate,
    "stock bypass": Bench.stock_bypass,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=_models.SIZES, default="sd15")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 10, 50])
    parser.add_argument("--side", type=int, default=64, help="of the latent: an eighth of the image's")
    parser.add_argument("--steps", type=int, default=4, help="of a timed run")
    parser.add_argument("--repeats", type=int, default=3, help="of a step's cost, in turn with the bare model's")
    parser.add_argument("--image", type=int, default=20, help="steps of a whole image; 0 leaves it out")
    parser.add_argument("--sweep", type=int, default=4, help="strengths of a sweep; 0 leaves it out")
    parser.add_argument("--stock-up-to", type=int, default=50, help="most sliders the stock modes are tried with")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="some of them")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    bench = Bench(options)
    for count in options.counts:
        for mode in options.modes:
            if count <= options.stock_up_to or not mode.startswith("stock"):
                MODES[mode](bench, count)
    if options.sweep:
        bench.sweep(options.sweep)
    if options.image:
        bench.image(max(options.counts), options.image)
    columns = ("mode", "sliders", "step", "change", "gate", "first", "gigabytes", "image")
    log.info("\n%s", _models.table(columns, bench.rows))
    if options.out:
        options.out.write_text(json.dumps({"bare_seconds": bench.bare, "rows": bench.rows}, indent=1))


if __name__ == "__main__":
    main()
