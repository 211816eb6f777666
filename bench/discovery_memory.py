"""The memory of training directions on models of full size, with random weights, in bytes that were counted.

    python3 dev.py bench discovery_memory [--models sdxl flux decoder] [--directions 40] [--side 1024]

One step of training, as Discover Sliders makes it through a head, one direction at a time: beyond the loaded model,
what is alive at its peak; on CUDA by the allocator, elsewhere by following every tensor. SDXL is whole. Of Flux a few
blocks have full width, one more of each kind in turn, from which its 19 and 38 follow: all blocks of a kind
are alike. decoder: SDXL's, with gradients through it, at half the side; its memory grows with the area.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import _models
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from _discovery_cost import PublishedLessons
from _live import peak_memory
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.discovery.head import EmbeddingHead
from concept_sliders.discovery.recipe import DiscoveryRecipe
from concept_sliders.discovery.trajectories import Trajectories
from concept_sliders.training.loop import Training
from concept_sliders.training.recipe import GRADIENT_CHECKPOINTING, MEMORY
from concept_sliders.training.trainable_layers import TrainableLayers

log = logging.getLogger("bench")
PROMPT, EMBEDDED, BYTES = "portrait", 768, torch.bfloat16
MODELS = ("sdxl", "flux", "decoder")
FLUX_DOUBLE, FLUX_SINGLE = 19, 38
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def flux(double: int, single: int) -> comfy.model_patcher.ModelPatcher:
    """Flux of full width with so many double and single blocks."""
    return _patcher(comfy.supported_models.Flux({**FLUX, "depth": double, "depth_single_blocks": single}))


def sdxl() -> comfy.model_patcher.ModelPatcher:
    config_class, config, _ = _models.SIZES["sdxl"]
    return _patcher(config_class({**_models.UNET, **config}))


def _patcher(config: Any) -> comfy.model_patcher.ModelPatcher:
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    config.unet_config["dtype"] = BYTES
    model = config.get_model({}, device=offload)
    for parameter in model.diffusion_model.parameters():
        parameter.data.normal_(0.0, 0.02)
    return comfy.model_patcher.CoreModelPatcher(model, device, offload)


def peak(patcher: Any, conditioning: list, shape: tuple[int, ...], directions: int, memory: str) -> float:
    """Return the peak of one step in GiB."""
    recipe = DiscoveryRecipe(prompts=(PROMPT,), directions=directions, steps=1, memory=memory, samples=directions + 1)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), borrowed(patcher):
        denoiser = Denoiser(patcher, {PROMPT: for_autograd(conditioning)})
        noise = torch.randn(2, 1, *shape)
        embeddings = torch.nn.functional.normalize(torch.randn(2, 1, EMBEDDED), dim=-1)
        seen = Trajectories(PROMPT, noise, noise, torch.tensor([1.0]), embeddings)
        channels = torch.zeros(shape[0]), torch.ones(shape[0])
        with peak_memory(denoiser.device) as found:
            head = EmbeddingHead(shape[0], EMBEDDED, *channels).to(denoiser.device).requires_grad_(False)
            layers = TrainableLayers(patcher, recipe, generator, count=directions)
            along = torch.nn.functional.normalize(torch.randn(directions, EMBEDDED), dim=-1).to(denoiser.device)
            lessons = _OneAtATime([seen], along, head, (0.0, 1.0), True, generator)
            training = Training(denoiser, layers, lessons, recipe, generator)
            training.run(lambda: False, lambda *told: None)
    return found.bytes / 2**30


class _OneAtATime(PublishedLessons):
    """Lessons of one direction: the peak of a step whose rows go one by one is that of one row."""

    at_once = 1


def decoder_peak(side: int) -> float:
    """Return the peak of gradients through SDXL's decoder, at a side in pixels, in GiB."""
    vae = _models.full_size_vae().to(BYTES)
    device = next(vae.parameters()).device
    with peak_memory(device) as found, differentiable():
        latent = torch.randn(1, 4, side // 8, side // 8, dtype=BYTES, device=device, requires_grad=True)
        vae.decode(latent).float().square().mean().backward()
    return found.bytes / 2**30


def size(patcher: Any) -> float:
    return sum(p.numel() * p.element_size() for p in patcher.model.diffusion_model.parameters()) / 2**30


def sdxl_rows(directions: int, side: int) -> list[str]:
    patcher, extra = sdxl(), {"pooled_output": torch.zeros(1, 1280)}
    conditioning = [[torch.randn(1, 77, 2048), extra]]
    lines = [f"SDXL, {side} px, {directions} directions: the model {size(patcher):.2f} GiB in bfloat16"]
    for memory in MEMORY:
        reached = peak(patcher, conditioning, (4, side // 8, side // 8), directions, memory)
        lines.append(f"  {memory}: {reached:.2f} GiB beyond it")
    return lines


def flux_rows(directions: int, side: int) -> list[str]:
    conditioning = [[torch.randn(1, 256, 4096), {"pooled_output": torch.zeros(1, 768), "guidance": 3.5}]]
    shape, found = (16, side // 8, side // 8), []
    for double, single in ((1, 1), (2, 1), (1, 2)):
        patcher = flux(double, single)
        found.append((size(patcher), peak(patcher, conditioning, shape, directions, GRADIENT_CHECKPOINTING)))
        log.info("  %d double blocks and %d single ones: %.2f GiB, %.2f beyond", double, single, *found[-1])
        del patcher
    weights, beyond = (_extrapolated(*of) for of in zip(*found))
    return [
        f"Flux, {side} px, {directions} directions, gradient checkpointing: the model {weights:.1f} GiB in bfloat16, "
        f"{weights / 2:.1f} in 8 bits; {beyond:.2f} GiB beyond it"
    ]


def _extrapolated(one: float, more_double: float, more_single: float) -> float:
    """What the whole takes, of what it takes with one block of each kind and with one more of each."""
    return one + (more_double - one) * (FLUX_DOUBLE - 1) + (more_single - one) * (FLUX_SINGLE - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=("sdxl", "flux", "decoder"), default=["sdxl", "flux", "decoder"]
    )
    parser.add_argument("--directions", type=int, default=40)
    parser.add_argument("--side", type=int, default=1024, help="of images, in pixels")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    if "decoder" in options.models:
        log.info("Decoder, %d px: %.2f GiB", options.side // 2, decoder_peak(options.side // 2))
    for name, rows in (("sdxl", sdxl_rows), ("flux", flux_rows)):
        if name in options.models:
            log.info("%s", "\n".join(rows(options.directions, options.side)))


if __name__ == "__main__":
    main()
