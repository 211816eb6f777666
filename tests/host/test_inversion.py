"""Inverting pictures on the host's models, and making them again with its own samplers."""

import comfy.samplers
import nodes
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from concept_sliders.inversion.carrying import negative_conditioning
from concept_sliders.inversion.recipe import InversionRecipe
from concept_sliders.inversion.run import invert
from concept_sliders.pocket.drawing import draw
from concept_sliders.pocket.model import load_pocket
from concept_sliders.pocket.world import portraits
from concept_sliders.tests.host.families import FAMILIES
from concept_sliders.tests.host.tiny import difference

STEPS = 6
SETTINGS = {"steps": STEPS, "cfg": 3.0, "inner_steps": 40, "learning_rate": 0.1, "tolerance": 0.0, "refinement": 8}
CFG_FAMILIES = ("SD 1", "SD 2", "SDXL", "SDXL refiner", "SD3", "AuraFlow", "PixArt Sigma", "Lumina 2", "Qwen-Image")


@pytest.fixture(scope="module")
def pocket():
    """MODEL, CLIP and VAE, loaded in inference mode as nodes load them."""
    with torch.inference_mode():
        return load_pocket()


class Pictures:
    """Two drawings, encoded, with their prompts, as nodes hand them on."""

    def __init__(self, pocket):
        _, clip, vae = pocket
        drawn = np.stack([draw(person) for person in portraits(2, seed=2**41)])
        with torch.inference_mode():
            self.images = torch.from_numpy(drawn).float() / 255
            self.latents = vae.encode(self.images)
            self.positive, self.negative = (
                clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("portrait of a person", "")
            )


@pytest.fixture(scope="module")
def pictures(pocket):
    return Pictures(pocket)


def recipe(**changes):
    return InversionRecipe(**{**SETTINGS, **changes})


def inverted(model, pictures, **changes):
    with torch.inference_mode():
        return invert(model, pictures.latents, pictures.positive, pictures.negative, recipe(**changes))


def by_sampler_custom(model, inversion, positive, cfg=3.0, sampler="euler", sigmas=None, latent=None, noise=False, **more):
    latent = {"samples": inversion.noise, **more} if latent is None else latent
    with torch.inference_mode():
        return SamplerCustom.execute(
            model,
            noise,
            5,
            cfg,
            positive,
            negative_conditioning(inversion),
            KSamplerSelect.execute(sampler).result[0],
            inversion.sigmas if sigmas is None else sigmas,
            latent,
        ).result[0]["samples"]


@pytest.fixture(scope="module")
def inversion(pocket, pictures):
    return inverted(pocket[0], pictures)


def test_it(pocket, pictures, inversion):
    print(inversion.report())
    again = by_sampler_custom(pocket[0], inversion, pictures.positive)
    print(difference(again, pictures.latents), inversion.error)
    assert difference(again, pictures.latents) < 0.02
