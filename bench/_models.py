"""Full-size models with random weights, sliders for them, and sampling runs with a stopwatch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cli"))
import library  # noqa: F401  (makes ComfyUI and the pack importable)

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import comfy.utils
import torch
from _unets import SD15, SDXL, UNET
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.weight_adapters import tensors_by_key
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

SIZES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sd15": (comfy.supported_models.SD15, SD15, {}),
    "sdxl": (comfy.supported_models.SDXL, SDXL, {"pooled_output": torch.zeros(1, 1280)}),
}


def full_size(size: str) -> comfy.model_patcher.ModelPatcher:
    """An SD1.5 or SDXL with random weights, on ComfyUI's own device and in its own precision there."""
    config_class, config, _ = SIZES[size]
    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    model_config = config_class({**UNET, **config, "dtype": dtype})
    model = model_config.get_model({}, device=comfy.model_management.unet_offload_device())
    torch.manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        spread = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.0
        parameter.data.copy_(torch.randn(parameter.shape) * spread + float(parameter.ndim == 1))
    # the patcher that ComfyUI's own loaders would take here: on a GPU, one that pages weights in
    return comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())


def full_size_vae() -> torch.nn.Module:
    """The autoencoder of SD1.5 and SDXL with random weights, as ComfyUI builds it; `encode` takes (B, 3, H, W)."""
    sizes: dict[str, Any] = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    sizes |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=sizes, embed_dim=4)
    for parameter in vae.parameters():
        parameter.data.normal_(0.0, 0.02)
    return vae.to(comfy.model_management.get_torch_device()).eval().requires_grad_(False)


def some_layers(model, count: int) -> dict[str, str]:
    """`count` layers that sliders act on, linear and convolution, evenly over the model: name by path."""
    names = [(p, n) for p, n in layer_names(model).items() if ".attn2." not in p and "time_embed" not in p]
    return dict(names[int(i * len(names) / count)] for i in range(min(count, len(names))))


def random_slider(model, names: dict[str, str], seed: int, rank: int = 4) -> Slider:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, name in names.items():
        fresh = LowRank.fresh(weight_shape(model.model.get_submodule(path), name), rank, generator)
        layers[name] = LowRank(fresh.down, torch.randn(fresh.up.shape, generator=generator) * 0.02)
    return Slider(f"slider {seed}", layers)


def stack_of(sliders: list[Slider], strengths: list[float], gate: Gate | None = None) -> Stack:
    return sum((Stack.of(s, v, gate) for s, v in zip(sliders, strengths, strict=True)), Stack())


def tensors_of(slider: Slider) -> dict[str, torch.Tensor]:
    """A slider's tensors by the stock loader's keys."""
    return {key: t for name, change in slider.layers.items() for key, t in tensors_by_key(name, change).items()}


@dataclass
class Run:
    """One sampling run: when it was called, and when each of its steps was done, in seconds."""

    began: float
    steps: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        """The shortest of the steps after the first: one CFG evaluation, undisturbed."""
        return min(b - a for a, b in zip(self.steps, self.steps[1:]))

    @property
    def total(self) -> float:
        return self.steps[-1] - self.began

    def lead(self, step: float) -> float:
        """From the call to the first step's begin."""
        return self.steps[0] - self.began - step

    def longest(self, step: float) -> float:
        """Return what the longest of the later steps took more than a step."""
        return max(b - a for a, b in zip(self.steps, self.steps[1:])) - step


class Sampler:
    """CFG sampling of one model size, timed step by step."""

    def __init__(self, size: str, side: int, steps: int):
        context, extra = SIZES[size][1]["context_dim"], SIZES[size][2]
        self.latent, self.steps = torch.zeros(1, 4, side, side), steps
        self.positive, self.negative = ([[torch.randn(1, 77, context), dict(extra)]] for _ in range(2))

    def run(self, prepare, steps: int | None = None, rows: int = 1) -> Run:
        """prepare() -> model, or (model, positive): what is done between the change of a strength and sampling."""
        settle()
        run = Run(time.perf_counter())

        def done(*_):
            settle()
            run.steps.append(time.perf_counter())

        with torch.inference_mode():
            made = prepare()
            model, positive = made if isinstance(made, tuple) else (made, self.positive)
            self.result(model, steps, rows, positive, done)
        return run

    @torch.inference_mode()
    def result(self, model, steps: int | None = None, rows: int = 1, positive=None, callback=None) -> torch.Tensor:
        """Return the latents of a whole run, (rows, C, side, side)."""
        noise = torch.randn(1, *self.latent.shape[1:]).repeat(rows, 1, 1, 1)
        return comfy.sample.sample(
            model,
            noise,
            steps or self.steps,
            7.0,
            "euler",
            "normal",
            positive or self.positive,
            self.negative,
            self.latent.repeat(rows, 1, 1, 1),
            callback=callback,
            disable_pbar=True,
            seed=1,
        )


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes, as `now` counts them."""
    began = now()
    call()
    return now() - began


def now() -> float:
    """Seconds. On one CPU thread they are of its work, so that a busy machine measures as an idle one."""
    settle()
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def settle() -> None:
    """Wait for the device, so that the clock shows what is done and not what is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(columns: tuple[str, ...], rows: list[dict]) -> str:
    """In Markdown; a row that lacks a column leaves it empty."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows])
