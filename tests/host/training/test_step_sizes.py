"""The automatic learning rate: one step changes the layers of any model by the same share of their weights."""

import pytest
import torch
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.parameters import weight_rms
from concept_sliders.tests.support.tiny import FAMILIES, condition, tiny_model
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import train_textual
from concept_sliders.training.step_sizes import RHO

CONCEPT = Concept("a person", "an old person", "a young person", eta=4.0)


def shares(family, louder=(), **settings):
    """By layer: the root mean square of its change after one step, as a share of that of its weight.

    louder: layers whose weights are ten times as large.
    """
    model = tiny_model(family)
    modules = {name: model.model.get_submodule(path) for path, name in layer_names(model).items()}
    with torch.no_grad():
        for name in louder:
            modules[name].weight.mul_(10.0)
    recipe = TextualRecipe(
        concepts=(CONCEPT,), steps=1, rollout_steps=2, samples_per_rollout=1, layers="all", **settings
    )
    prompts = {prompt: condition(family, seed) for seed, prompt in enumerate(recipe.prompts())}
    latents = torch.zeros(2, FAMILIES[family][2], 8, 8)
    with torch.inference_mode():
        slider = train_textual(model, prompts, recipe, latents, "one step").slider
    found = {}
    for name, change in slider.layers.items():
        delta = change.parts["diff"] if settings.get("full_rank") else change.up.flatten(1) @ change.down.flatten(1)
        rms = float(delta.square().mean().sqrt())
        found[name] = rms / weight_rms(modules[name], torch.device("cpu"))
    return found


def bears(name):
    """Returns False for layers that add one number to a whole channel, in tiny models whose next norm has one channel
    a group and takes it out again: their gradient is rounding noise, which is below Adam's epsilon.
    """
    return not name.endswith("time_emb_proj")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"rank": 16, "alpha": 4.0}, {"full_rank": True}], ids=str)
def test_one_step_changes_every_layer_by_the_same_share(family, settings):
    found = [share for name, share in shares(family, **settings).items() if bears(name)]
    assert len(found) > 15 and sorted(found)[len(found) // 2] == pytest.approx(RHO, rel=0.1)
    assert all(0.5 * RHO < share < 2.0 * RHO for share in found)


def test_the_share_does_not_depend_on_how_large_a_weight_is_but_with_a_rate_by_hand():
    louder = [name for name in shares("SD15") if bears(name)][::2]
    found, by_hand = shares("SD15", louder), shares("SD15", louder, learning_rate=5e-4)
    assert all(0.5 * RHO < found[name] < 2.0 * RHO for name in louder)
    assert max(by_hand[name] for name in louder) < 0.2 * max(by_hand.values())
