"""The node that loads recipes: those that come with the pack, and those in slider files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..sliders.formats.slider_files import load_slider
from ..training.recipe import EncoderRecipe, Recipe, TextualRecipe, recipe_from
from .model_folders import find_slider, slider_names, stamp
from .report import REPORTS, Report
from .sockets import SliderConcept, SliderRecipe

SHIPPED = Path(__file__).parent.parent / "recipes"
_PREFIX = "recipes/"  # of the names of shipped recipes


class LoadRecipe(io.ComfyNode):
    """Reads a recipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadRecipe",
            display_name="Load Recipe",
            category="sliders/training",
            search_aliases=["preset", "fix hands", "realism", "repair slider"],
            description="A recipe that comes with the pack, or how a slider was trained, from its file: to train it "
            "again, on another model, or a little differently.",
            inputs=[
                io.Combo.Input(
                    "slider",
                    options=[*shipped_names(), *slider_names()],
                    tooltip="A recipe of the pack, or a slider trained with it.",
                )
            ],
            outputs=[
                SliderRecipe.Output(display_name="recipe", tooltip="All settings, for the recipe input of training."),
                SliderConcept.Output(display_name="concept", tooltip="What it was trained on, if from prompts."),
                io.String.Output(display_name="text", tooltip="The recipe as JSON."),
            ],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, slider: str) -> tuple[int, ...]:
        return stamp(_file(slider))

    @classmethod
    def execute(cls, slider: str) -> io.NodeOutput:
        path = _file(slider)
        values, about = (_of_json(path), {}) if slider in shipped_names() else _of_slider(path, slider)
        recipe = recipe_from(values)
        concept = recipe.concepts if isinstance(recipe, (TextualRecipe, EncoderRecipe)) else None
        text = json.dumps({**values, **about}, indent=1, ensure_ascii=False)
        return io.NodeOutput(recipe, concept, text, ui=_summary(recipe).on_node())


def _summary(recipe: Recipe) -> Report:
    """Report what a recipe trains, in a few lines; the whole of it is an output."""
    less, more = recipe.ends
    return Report().fact(
        f"from {less or 'less'} to {more or 'more'}",
        f"{recipe.steps} steps at rank {recipe.rank}, learning rate {recipe.learning_rate:g}",
        f"layers: {recipe.layers}",
    )


def shipped_names() -> list[str]:
    """List the recipes that come with the pack, by the names that Load Recipe shows."""
    return [f"{_PREFIX}{path.stem}" for path in sorted(SHIPPED.glob("*.json"))]


def _file(name: str) -> Path:
    if name in shipped_names():
        return SHIPPED / f"{name.removeprefix(_PREFIX)}.json"
    return find_slider(name)


def _of_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _of_slider(path: Path, name: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read the recipe in a slider's file, and the family and the hash of the model that it was trained on."""
    info = load_slider(path).info
    if not info.recipe:
        raise ValueError(f"The file {name} holds no recipe: it was not trained with this pack.")
    return info.recipe, {"family": info.family, "base_model_hash": info.base_model_hash}
