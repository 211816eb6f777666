"""The pocket model as MODEL, CLIP, VAE and CLIP_VISION, which every ComfyUI node takes."""

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from .autoencoder import CHANNELS, FACTOR, Autoencoder
from .eight_bits import unpacked
from .text import PocketClipModel, PocketTokenizer
from .unet import build_unet
from .vision import build_vision

FOLDER = Path(__file__).with_name("weights")
LORAS = "loras"  # within it
TURBO = "pocket_turbo.safetensors"  # there: a LoRA for four steps of euler, sgm_uniform, at CFG 1


def build_clip(**model_options) -> comfy.sd.CLIP:
    """The text encoder with unset weights; `dtype` among the options overrides what ComfyUI would choose."""
    target = comfy.supported_models_base.ClipTarget(PocketTokenizer, PocketClipModel)
    return comfy.sd.CLIP(target, state_dict={}, parameters=1_000_000, model_options=model_options)


def build_vae(network: Autoencoder) -> comfy.sd.VAE:
    """ComfyUI's VAE around the pack's own network."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = network.eval().to(vae.vae_dtype)
    vae.downscale_ratio = vae.upscale_ratio = FACTOR
    vae.latent_channels = CHANNELS
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    return vae


def load_pocket(folder: Path = FOLDER):
    """(ModelPatcher, CLIP, VAE, ClipVisionModel) from the shipped weights, or from those of a training run.

    Raises FileNotFoundError if `folder` lacks one of the files.
    """
    model = build_unet()
    model.diffusion_model.load_state_dict(weights_of(folder, "unet"))
    patcher = comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    clip = build_clip()
    clip.cond_stage_model.clip_l.transformer.load_state_dict(weights_of(folder, "text"))
    return patcher, clip, build_vae(load_autoencoder(folder)), build_vision(weights_of(folder, "vision"))


def with_turbo(model: comfy.model_patcher.ModelPatcher, folder: Path = FOLDER) -> comfy.model_patcher.ModelPatcher:
    """The few-step student: the model with its LoRA, by ComfyUI's own loader. Raises FileNotFoundError without it."""
    path = folder / LORAS / TURBO
    if not path.is_file():
        raise FileNotFoundError(f"No few-step LoRA of the pocket model at {path}: train one with pocket/train.py.")
    lora = comfy.utils.load_torch_file(str(path))
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def load_autoencoder(folder: Path = FOLDER) -> Autoencoder:
    """The VAE's network alone."""
    network = Autoencoder()
    network.load_state_dict(weights_of(folder, "vae"))
    return network


def weights_of(folder: Path, part: str) -> dict[str, Tensor]:
    """Those of one part ("unet", "text", "vae", "vision"), in single precision."""
    path = folder / f"{part}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"No {part} of the pocket model at {path}: train one with pocket/train.py.")
    return unpacked(comfy.utils.load_torch_file(str(path)))
