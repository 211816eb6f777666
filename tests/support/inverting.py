"""What the tests of inversion share: images, settings, and ComfyUI's samplers on what comes of them."""

import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from concept_sliders.inversion.conditioning import negative_conditioning
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.inversion.settings import InversionSettings
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits

import nodes

STEPS = 4
SETTINGS = {"steps": STEPS, "cfg": 3.0, "inner_steps": 3, "learning_rate": 0.1, "tolerance": 0.0, "refinement": 1}


class EncodedImages:
    """Two drawings, encoded, with their prompts, as nodes hand them on."""

    def __init__(self, pocket):
        self._clip, vae = pocket[1:]
        drawn = np.stack([draw(person) for person in portraits(2, seed=2**41)])
        with torch.inference_mode():
            self.pixels = torch.from_numpy(drawn).float() / 255
            self.latents = vae.encode(self.pixels)
        self.positive, self.negative = self.encoded("portrait of a person"), self.encoded("")

    def encoded(self, *texts):
        """CONDITIONING with an entry for each text."""
        with torch.inference_mode():
            entries = [self._clip.encode_from_tokens_scheduled(self._clip.tokenize(text))[0] for text in texts]
            pooled = torch.cat([options["pooled_output"] for _, options in entries])
            return [[torch.cat([encoding for encoding, _ in entries]), {"pooled_output": pooled}]]


def quick_settings(**changes):
    return InversionSettings(**{**SETTINGS, **changes})


def inverted(model, images, tell=lambda told: None, **changes):
    with torch.inference_mode():
        return invert(model, images.latents, images.positive, images.negative, quick_settings(**changes), tell)


@torch.inference_mode()
def by_sampler_custom(
    model, inversion, positive, cfg=3.0, sampler="euler", sigmas=None, latent=None, noise=False, negative=None
):
    """What SamplerCustom makes of an inversion, as wired from its outputs, or otherwise."""
    return SamplerCustom.execute(
        model,
        noise,
        5,
        cfg,
        positive,
        negative or negative_conditioning(inversion),
        KSamplerSelect.execute(sampler).result[0],
        inversion.sigmas if sigmas is None else sigmas,
        latent or {"samples": inversion.noise.clone()},
    ).result[0]["samples"]


@torch.inference_mode()
def ksampled(model, inversion, positive, steps=None, scheduler=None, cfg=3.0, sampler="euler", **more):
    """What KSampler makes of it: it always adds noise, by its seed."""
    return nodes.common_ksampler(
        model,
        17,
        steps or inversion.settings.steps,
        cfg,
        sampler,
        scheduler or inversion.settings.scheduler,
        positive,
        negative_conditioning(inversion),
        {"samples": inversion.noise.clone()},
        **more,
    )[0]["samples"]


def errors(latents, images):
    """(B,): as an inversion's own."""
    return (latents - images.latents).flatten(1).norm(dim=1) / images.latents.flatten(1).norm(dim=1)


def refused(message, sample, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        sample(*args, **kwargs)
