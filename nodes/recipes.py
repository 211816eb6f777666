"""Recipes that stand in slider files."""

import json

from comfy_api.latest import io, ui

from ..sliders.files import load_slider
from ..training.recipe import TextualRecipe, recipe_from
from .loading import find_slider, slider_names
from .sockets import SliderConcept, SliderRecipe


class LoadRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadRecipe",
            display_name="Load Recipe",
            category="sliders/training",
            description="How a slider was trained, from its file: to train it again, on another model, or a little "
            "differently.",
            inputs=[io.Combo.Input("slider", options=slider_names(), tooltip="A slider trained with this pack.")],
            outputs=[
                SliderRecipe.Output(display_name="recipe", tooltip="All settings, for the recipe input of training."),
                SliderConcept.Output(display_name="concept", tooltip="What it was trained for, if from words."),
                io.String.Output(display_name="text", tooltip="The recipe as JSON."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, slider: str):
        return find_slider(slider).stat().st_mtime_ns

    @classmethod
    def execute(cls, slider: str) -> io.NodeOutput:
        info = load_slider(find_slider(slider)).info
        if not info.recipe:
            raise ValueError(f"The file {slider} holds no recipe: it was not trained with this pack.")
        recipe = recipe_from(info.recipe)
        concept = recipe.concepts if isinstance(recipe, TextualRecipe) else None
        text = json.dumps({**info.recipe, "family": info.family, "base_model_hash": info.base_model_hash}, indent=1)
        return io.NodeOutput(recipe, concept, text, ui=ui.PreviewText(text))
