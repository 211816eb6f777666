"""The node that samples as a slider would, before one is trained."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..comfy_host.audition import Contrast, audition
from ..comfy_host.text_encoders import encode_prompts
from ..sliders.gate import Gate
from ..training.concept import Concept
from .composing import STRENGTH_TOOLTIP, gate_inputs
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
            ],
            outputs=[io.Model.Output()],
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
    ) -> io.NodeOutput:
        gate = Gate(start_percent, end_percent, ramp)  # refuses bad values before prompts are encoded
        return io.NodeOutput(audition(model, encode_contrasts(clip, concept), strength, gate))


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
