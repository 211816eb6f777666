"""The node that samples as a slider would, before one is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..comfy_host.audition import Contrast, audition
from ..comfy_host.latents import fit_latent
from ..comfy_host.text_encoders import encode_prompts
from ..sliders.gate import Gate
from ..training.automatic import choose_etas
from ..training.concept import Concept
from ..training.eta_choice import EtaChoice, told_etas, warn_etas
from ..training.recipe import TextualRecipe
from ..training.words import check_words
from .composing import STRENGTH_TOOLTIP, gate_inputs
from .report import REPORTS, Report
from .sockets import SliderConcept


class AuditionSlider(io.ComfyNode):
    """Adds the change that training would aim at to every step of sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersAuditionSlider",
            display_name="Audition Slider",
            category="sliders",
            search_aliases=["try slider", "preview slider", "training-free slider"],
            description="Samples as a slider of this concept would, without training one. Each step takes two more "
            "evaluations of the model for each phrase to preserve; outside the gate and at strength 0 none.",
            inputs=[
                io.Model.Input("model", tooltip="Sliders applied to it, before or after, act in these too."),
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
                *gate_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="An empty latent of the size that you sample at. Only used where the concept's eta is 0: "
                    "it is then chosen as training would.",
                ),
            ],
            outputs=[io.Model.Output()],
            **REPORTS,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concept: tuple[Concept, ...],
        strength: float,
        start_percent: float,
        end_percent: float,
        ramp: float,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        gate = Gate(start_percent, end_percent, ramp)  # refuses bad values before prompts are encoded
        said = check_words(clip, concept)
        concept, report = with_etas(model, clip, concept, latent)
        heard = audition(model, encode_contrasts(clip, concept), strength, gate)
        return io.NodeOutput(heard, ui=report.warn(*said).on_node())


def with_etas(
    model: ModelPatcher, clip: CLIP, concepts: tuple[Concept, ...], latent: dict[str, Any] | None
) -> tuple[tuple[Concept, ...], Report]:
    """Return the concepts with an eta each, and a report; one of 0 is chosen as Train Slider's defaults would.

    Raises ValueError if one is to be chosen, and no latent says at what size.
    """
    if all(concept.eta for concept in concepts):
        return concepts, Report().fact(told_etas([EtaChoice(concept.eta, 0.0) for concept in concepts]))
    if latent is None:
        raise ValueError(
            "Audition Slider: the concept's eta is 0, for automatic, and is found by sampling: connect a latent of "
            "the size that you sample at, or set eta in Slider Concept."
        )
    recipe = TextualRecipe(concepts=concepts)
    choices = choose_etas(model, encode_prompts(clip, recipe.prompts()), recipe, fit_latent(model, latent))
    chosen = (replace(concept, eta=choice.eta) for concept, choice in zip(concepts, choices, strict=True))
    return tuple(chosen), Report().fact(told_etas(choices)).warn(warn_etas(choices))


def encode_contrasts(clip: CLIP, concepts: tuple[Concept, ...]) -> tuple[Contrast, ...]:
    """Encode both ends of every concept, with every phrase to preserve.

    The eta of each is multiplied by its share of the weights, which is how often training would take it.
    """
    total = sum(concept.weight for concept in concepts)
    contrasts = []
    for concept in concepts:
        encoded = encode_prompts(clip, dict.fromkeys(prompt for ends in concept.ends() for prompt in ends))
        more = tuple(encoded[prompt] for prompt, _ in concept.ends())
        less = tuple(encoded[prompt] for _, prompt in concept.ends())
        contrasts.append(Contrast(more, less, concept.signed_eta * concept.weight / total))
    return tuple(contrasts)
