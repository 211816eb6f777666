"""Tiny models of ComfyUI's own classes with random weights, sliders for them, and short sampling runs."""

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny_families.family import randomise
from concept_sliders.tests.support.tiny_families.transformers import FLUX
from concept_sliders.tests.support.tiny_families.unets import UNET

FAMILIES = {
    "SD15": (comfy.supported_models.SD15, UNET, 4, 0),
    "SDXL": (
        comfy.supported_models.SDXL,
        # SDXL has heads of 64 channels
        {
            **UNET,
            "model_channels": 64,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        4,
        1280,
    ),
    "Flux": (comfy.supported_models.Flux, FLUX, 16, 8),
}
STEPS = 6


def tiny_model(family: str, seed: int = 0) -> ModelPatcher:
    config_class, unet_config, _, _ = FAMILIES[family]
    model = config_class(dict(unet_config)).get_model({}, device=torch.device("cpu"))
    randomise(model.diffusion_model, seed)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def random_slider(model: ModelPatcher, seed: int = 1, names=None, rank: int = 2, size: float = 0.3) -> Slider:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, name in (names or layer_names(model)).items():
        fresh = LowRank.fresh(weight_shape(model.model.get_submodule(path), name), rank, generator)
        layers[name] = LowRank(fresh.down, torch.empty_like(fresh.up).normal_(0.0, size, generator=generator))
    return Slider(f"random {seed}", layers)


def tensors_of(slider: Slider) -> dict[str, torch.Tensor]:
    """A low-rank slider's tensors by the keys that the stock LoRA loader reads."""
    pairs = ((n, p, t) for n, layer in slider.layers.items() for p, t in (("down", layer.down), ("up", layer.up)))
    return {f"{name}.lora_{part}.weight": tensor for name, part, tensor in pairs}


def condition(family: str, seed: int):
    pooled = FAMILIES[family][3]
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, 7, 16, generator=generator), extra]]


def sample(
    model: ModelPatcher,
    family: str,
    batch_size: int = 1,
    sampler="euler",
    start=None,
    last=None,
    latent=None,
    noise=None,
    steps=STEPS,
    callback=None,
):
    """A latent of the model after some steps with CFG 3; every batch entry has the same noise."""
    channels = FAMILIES[family][2]
    if latent is None:
        latent = torch.zeros(batch_size, channels, 8, 8)
    if noise is None:
        noise = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(7)).repeat(batch_size, 1, 1, 1)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            3.0,
            sampler,
            "normal",
            condition(family, 2),
            condition(family, 3),
            latent,
            start_step=start,
            last_step=last,
            disable_noise=start is not None,
            callback=callback,
            seed=5,
        ).clone()


def one_evaluation(model: ModelPatcher, stack: Stack, mode: str) -> torch.Tensor:
    """What the model makes of one noisy latent at sigma 3, as noise."""
    acted = apply_sliders(model, stack, mode)
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), condition("SD15", 2)[0][0]
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([acted])
        acted.pre_run()
        options = {"wrappers": acted.wrappers, "cond_or_uncond": [0], "sigmas": torch.tensor([3.0])}
        options["sample_sigmas"] = torch.linspace(14.0, 0.0, 20)
        denoised = model.model.apply_model(
            x, torch.tensor([3.0]), c_crossattn=context, transformer_options=options
        ).float()
        acted.cleanup()
    return (x - denoised) / 3.0


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def traces(model: ModelPatcher) -> list[str]:
    return [
        n for n, m in model.model.named_modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
    ]
