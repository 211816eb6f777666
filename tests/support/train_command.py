"""Recipes and images for the training command."""

import json

import torch
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from PIL import Image

CONCEPT = {"target": "portrait of a person", "more": "very old person", "less": "very young person", "eta": 4.0}

SMALL = {"steps": 3, "rollout_steps": 2, "rank": 2}


def recipe_file(folder, **values):
    """Writes the values as a JSON recipe and returns its path."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return path


def same(one, other):
    """Returns True if two sliders have the same layers, to the bit."""
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(one.layers[name].up, layer.up) and torch.equal(one.layers[name].down, layer.down)
        for name, layer in other.layers.items()
    )


def drawn_pairs(folder, seed=3):
    """Draws two people with little and much of a smile, as a folder of image pairs; returns the folder."""
    folder.mkdir()
    for index, person in enumerate(portraits(2, seed=seed)):
        for strength, smile in ((-1, 0.1), (1, 0.9)):
            Image.fromarray(draw(person.with_(smile=smile))).save(folder / f"{index}_{strength}.png")
    return folder
