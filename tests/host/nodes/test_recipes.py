"""Recipes that come with the pack: they parse, Load Recipe hands them on, and the pocket one does what it says."""

import json
from pathlib import Path

import pytest
import torch
from concept_sliders.cli.train import read_recipe
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.nodes.recipes import LoadRecipe, shipped_names
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import train_textual

import nodes

FOLDER = Path(__file__).parents[3] / "recipes"
NAMES = ["recipes/fix_hands", "recipes/pocket_repair", "recipes/realism"]
PEOPLE = 8


def test_load_recipe_lists_them_before_the_sliders():
    options = next(i for i in LoadRecipe.define_schema().inputs if i.id == "slider").options
    assert options[: len(NAMES)] == shipped_names() == NAMES
    assert "pocket_age.safetensors" in options[len(NAMES) :]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_is_whole_and_says_what_it_is_for(name):
    recipe, concepts, text = LoadRecipe.execute(name).result
    assert isinstance(recipe, TextualRecipe) and recipe.concepts == concepts
    assert recipe == read_recipe(FOLDER / f"{name.removeprefix('recipes/')}.json")
    assert recipe.notes.keys() == {"for", "source", "use"}
    assert json.loads(text)["notes"] == recipe.notes
    assert LoadRecipe.fingerprint_inputs(name)


@pytest.mark.parametrize("name", ["fix_hands", "realism"])
def test_recipes_after_published_ones_train_as_their_code_does(name):
    recipe = read_recipe(FOLDER / f"{name}.json")
    as_published = {
        "rank": 4,
        "alpha": 1.0,
        "steps": 1000,
        "learning_rate": 2e-4,
        "layers": "noxattn",
        "guidance": 3.0,
    }
    assert {field: getattr(recipe, field) for field in as_published} == as_published
    assert recipe.concepts[0].eta == 4.0 and not recipe.both_signs and recipe.convolutions


def test_a_slider_gives_its_recipe_and_the_model_it_was_trained_on():
    recipe, concepts, text = LoadRecipe.execute("pocket_age.safetensors").result
    assert concepts[0].more == "portrait of a very old person" and recipe.steps == 400
    assert json.loads(text)["base_model_hash"]


def test_a_name_that_is_neither_is_refused():
    with pytest.raises(FileNotFoundError, match="recipes/no_such"):
        LoadRecipe.execute("recipes/no_such")


@pytest.mark.release
def test_the_pocket_repair_recipe_moves_between_bad_and_good_images():
    with torch.inference_mode():
        model, clip, vae, _ = load_pocket()
        recipe = read_recipe(FOLDER / "pocket_repair.json")
        said = {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in recipe.prompts()}
        slider = train_textual(model, said, recipe, torch.zeros(2, 8, 16, 16), "repair").slider
        swept = apply_sliders(model, Stack.of(slider).swept(0, (-1.5, 1.5), PEOPLE))
        latent = {"samples": torch.zeros(2 * PEOPLE, 8, 16, 16), "batch_index": [i // 2 for i in range(2 * PEOPLE)]}
        target = said[recipe.concepts[0].target]
        made = nodes.common_ksampler(swept, 77, 10, 3.0, "euler", "simple", target, said[""], latent)[0]
        spoiled = load_probe().read(vae.decode(made["samples"]))["spoiled"].view(PEOPLE, 2).mean(0)
    assert spoiled[0] > 0.6 and spoiled[1] < 0.1, spoiled
