"""Names of a UNet's layers in files: the same in every process, and such as other tools read."""

import os
import subprocess
import sys
from pathlib import Path

import comfy.utils
import pytest
from concept_sliders.comfy_host.layer_conversion import converted_layers
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.sliders.formats.conventions import CONVENTIONS
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import random_slider, tiny_model

TESTS = Path(__file__).parents[2]
# Prints the names of SDXL's layers, and in which order this process has ComfyUI's set of pairs
SCRIPT = """
import conftest, host.conftest, comfy.utils
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.tests.support.tiny import tiny_model
print(*layer_names(tiny_model("SDXL")).values(), sep=" ")
print([theirs for _, theirs in comfy.utils.UNET_MAP_BASIC if "embedding.linear_1.weight" in theirs])
"""


def test_names_are_the_same_in_every_process():
    found, orders = [], []
    for seed in ("1", "6"):
        made = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=True,
        )
        names, order = made.stdout.splitlines()[-2:]
        found.append(names)
        orders.append(order)
    assert orders[0] != orders[1]  # the set does differ, so that the rest can fail
    assert found[0] == found[1] and "lora_unet_label_emb_0_0" in found[0].split()


@pytest.mark.parametrize("family", ["SD 1", "SDXL", "SDXL refiner", "SD 2.1 unCLIP"])
def test_names_do_not_depend_on_the_order_of_comfyuis_set(family, monkeypatch):
    model, found = FAMILIES[family].build(), []
    slider = random_slider(model, names=dict(list(layer_names(model).items())[:8]) | embeddings(model))
    for reverse in (False, True):
        monkeypatch.setattr(comfy.utils, "UNET_MAP_BASIC", sorted(comfy.utils.UNET_MAP_BASIC, reverse=reverse))
        converted = [list(converted_layers(slider, convention, model)) for convention in CONVENTIONS]
        found.append((layer_names(model), converted))
    assert found[0] == found[1]


def embeddings(model):
    """Names by path of the layers that embed the pooled prompt, where the model has any."""
    return {path: name for path, name in layer_names(model).items() if "label_emb" in path}


def test_the_added_embedding_has_the_name_that_diffusers_reads():
    """diffusers takes "lora_unet_" off, reads underscores as dots and the last number as a part of an SGM name."""
    model = tiny_model("SDXL")
    names = set(layer_names(model).values())
    assert {"lora_unet_label_emb_0_0", "lora_unet_label_emb_0_2"} <= names
    assert not any(word in name for name in names for word in ("add_embedding", "class_embedding"))
