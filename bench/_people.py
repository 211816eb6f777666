"""The same people, sampled with a model of the pocket world and read by its probe."""

from __future__ import annotations

from typing import Any

import nodes
import torch
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings
from concept_sliders.pocket.measuring.probe import COLUMNS, Probe
from concept_sliders.pocket.measuring.sampling import FEW_STEPS as TURBO
from concept_sliders.pocket.world.portrait import STYLES
from torch import Tensor

FIRST_SEED = 70_000
ORDINARY = SamplerSettings(20, 3.0, "euler", "simple")
FEW_STEPS = SamplerSettings(TURBO.steps, TURBO.cfg, TURBO.sampler, TURBO.scheduler)
MEASURED = tuple(name for name in COLUMNS if name not in STYLES)


@torch.inference_mode()
def read(
    model: Any,
    clip: Any,
    vae: Any,
    probe: Probe,
    prompt: str,
    latent: Tensor,
    people: int,
    columns: int,
    settings: SamplerSettings = ORDINARY,
) -> Tensor:
    """Return what the probe reads of `MEASURED`, (people, columns, attributes): the same people in every column.

    latent: (1, C, ...), an empty one of the size to sample at. columns: how many strengths the model's sliders are
    swept over.
    """
    encode = nodes.CLIPTextEncode().encode
    batch = {
        "samples": latent.repeat(people * columns, *(1 for _ in latent.shape[1:])),
        "batch_index": [person for person in range(people) for _ in range(columns)],
    }
    guiding = encode(clip, prompt)[0], encode(clip, "")[0]
    steps, cfg, sampler, scheduler = settings.steps, settings.cfg, settings.sampler, settings.scheduler
    (made,) = nodes.common_ksampler(model, FIRST_SEED, steps, cfg, sampler, scheduler, *guiding, batch)
    images = vae.decode(made["samples"])
    return probe.read(images).values[:, : len(MEASURED)].unflatten(0, (people, columns))
