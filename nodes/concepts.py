"""Nodes that say in words what a slider is to learn."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.concept import Concept
from .sockets import SliderConcept


class SliderConceptNode(io.ComfyNode):
    """Makes a concept of prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSliderConcept",
            display_name="Slider Concept",
            category="sliders/training",
            description="What a slider is to change: prompts for its two ends, and what it must preserve.",
            inputs=[
                io.String.Input(
                    "target",
                    default="person",
                    multiline=True,
                    tooltip="What the slider acts on. Empty: on anything.",
                ),
                io.String.Input(
                    "more",
                    default="very old person",
                    multiline=True,
                    tooltip="The target with much of the attribute: strength above 0.",
                ),
                io.String.Input(
                    "less",
                    default="very young person",
                    multiline=True,
                    tooltip="The target with little of the attribute: strength below 0.",
                ),
                io.String.Input(
                    "preserve",
                    default="",
                    multiline=True,
                    tooltip="Phrases to preserve, one a line, each followed by its opposite, such as 'male' and "
                    "'female': the slider learns the change they have in common. To preserve several attributes name "
                    "all of them in every phrase: 'male, with a hat', 'female, without a hat', and so on.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=50.0,
                    step=0.05,
                    tooltip="How far strength 1 goes: the guidance scale of the change. 0: automatic, found by "
                    "auditions before training. Published: 4.",
                ),
                io.Boolean.Input(
                    "erase",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Strength 1 takes the attribute away instead of bringing more of it.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How often it is trained on, relative to the other concepts of the slider.",
                ),
            ],
            outputs=[SliderConcept.Output(display_name="concept")],
        )

    @classmethod
    def execute(
        cls, target: str, more: str, less: str, preserve: str, eta: float, erase: bool = False, weight: float = 1.0
    ) -> io.NodeOutput:
        phrases = tuple(line.strip() for line in preserve.splitlines() if line.strip())
        concept = Concept(target.strip(), more.strip(), less.strip(), phrases, eta, erase, weight)
        return io.NodeOutput((concept,))


class CombineConcepts(io.ComfyNode):
    """Joins concepts for one slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        growing = io.Autogrow.TemplatePrefix(SliderConcept.Input("concept"), prefix="concept", min=2, max=20)
        return io.Schema(
            node_id="ConceptSlidersCombineConcepts",
            display_name="Combine Concepts",
            category="sliders/training",
            description="Several concepts for one slider to learn, such as rusty and shiny cars, bikes and gates. "
            "Each keeps its own target and is trained on in proportion to its weight.",
            inputs=[io.Autogrow.Input("concepts", template=growing, tooltip="A new input appears as you connect.")],
            outputs=[SliderConcept.Output(display_name="concept")],
        )

    @classmethod
    def execute(cls, concepts: io.Autogrow.Type) -> io.NodeOutput:
        return io.NodeOutput(tuple(c for several in concepts.values() if several is not None for c in several))
