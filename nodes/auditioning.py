"""A concept heard on a model before a slider is trained for it."""

from comfy_api.latest import io

from ..comfy_host.audition import Contrast, audition
from ..sliders.gate import Gate
from ..training.recipe import Concept
from .composing import STRENGTH_TOOLTIP
from .sockets import SliderConcept


class AuditionSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return io.Schema(
            node_id="ConceptSlidersAuditionSlider",
            display_name="Audition Slider",
            category="sliders",
            search_aliases=["try slider", "preview slider", "training-free slider"],
            description="Samples as a slider of this concept would make it, without training one. Each step costs "
            "two more passes of the model, times the phrases to preserve; outside the gate and at strength 0 none.",
            inputs=[
                io.Model.Input("model", tooltip="Sliders applied to it, before or after, take part."),
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
                part(
                    "start_percent",
                    0.2,
                    "When it begins to act, as a fraction of sampling (0 = from the first step).",
                ),
                part("end_percent", 1.0, "When it stops, as a fraction of sampling (1 = at the last step)."),
                part("ramp", 0.0, "Fraction of sampling over which it comes in, and goes out before an end below 1."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concept: tuple[Concept, ...],
        strength: float,
        start_percent: float,
        end_percent: float,
        ramp: float,
    ) -> io.NodeOutput:
        gate = Gate(start_percent, end_percent, ramp)  # before the text encoder is troubled
        return io.NodeOutput(audition(model, encode_contrasts(clip, concept), strength, gate))


def encode_contrasts(clip, concepts: tuple[Concept, ...]) -> tuple[Contrast, ...]:
    """The ends of every concept as CONDITIONING, with every phrase to preserve.

    Several concepts count by their weights, whose sum is 1: as often as training would come to each.
    """
    total = sum(concept.weight for concept in concepts)
    return tuple(Contrast(*_ends(clip, concept), concept.signed_eta * concept.weight / total) for concept in concepts)


def _ends(clip, concept: Concept) -> tuple[tuple[list, ...], tuple[list, ...]]:
    """CONDITIONING of more and of less, phrase by phrase."""
    more, less = zip(*concept.ends())
    return tuple(
        tuple(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in end) for end in (more, less)
    )
