"""Concepts and recipes: what they hold, and what they refuse."""

import json
import re

import pytest
from concept_sliders.training.concept import Concept
from concept_sliders.training.layer_choice import CHOICES, choose_layers
from concept_sliders.training.recipe import TextualRecipe, VisualRecipe, recipe_from

SAID = {"target": "person", "more": "old person", "less": "young person"}
AGE = Concept("person", "old person", "young person", ("with glasses", "without glasses"))


def test_every_end_is_asked_with_every_phrase():
    assert AGE.ends() == (
        ("old person, with glasses", "young person, with glasses"),
        ("old person, without glasses", "young person, without glasses"),
    )
    assert AGE.targets() == ("person, with glasses", "person, without glasses")
    assert Concept("", "old", "young", ("male",)).targets() == ("male",)  # a global slider's
    assert AGE.prompts()[:3] == ("person", *AGE.targets()) and len(AGE.prompts()) == 7


def test_without_phrases_the_ends_stand_alone():
    assert Concept("", "rain", "sun").ends() == (("rain", "sun"),)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"more": "  "}, "'more' prompt is empty"),
        ({"less": ""}, "'less' prompt is empty"),
        ({"more": "Old  Person", "less": "old person"}, "same prompt"),
        ({"preserve": ("male", " ")}, "phrase to preserve is empty"),
        ({"preserve": ("male", "Male")}, "there twice"),
        ({"eta": -1.0}, "above 0, or 0 for automatic; got -1.0"),
        ({"eta": float("nan")}, "above 0"),
    ],
)
def test_a_concept_that_cannot_be_learned_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        Concept(**{"target": "person", "more": "old person", "less": "young person", **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", 129),
        ("steps", 0),
        ("learning_rate", -1e-4),
        ("rho", 0.0),
        ("learning_rate", float("inf")),
        ("layers", "some"),
        ("rollout_steps", 1),
        ("guidance", -1.0),
        ("samples_per_rollout", 0),
        ("alpha", -1.0),
        ("pattern", "(open"),
        ("concepts", ()),
        ("start_percent", -0.1),
        ("start_percent", 1.0),
        ("end_percent", 0.0),
        ("end_percent", 1.5),
    ],
)
def test_a_recipe_names_the_field_that_is_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        TextualRecipe(**{"concepts": (AGE,), field: value})


def test_a_recipe_survives_json():
    twice = (AGE, Concept("dog", "old dog", "puppy", erase=True, weight=0.5))
    recipe = TextualRecipe(concepts=twice, rank=8, start_percent=0.1, end_percent=0.9, seed=5)
    assert recipe_from(json.loads(json.dumps(recipe.as_dict()))) == recipe
    visual = VisualRecipe(method="ADDifT", sets=4)
    assert recipe_from(json.loads(json.dumps(visual.as_dict()))) == visual


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "oral"}, "one of textual, visual, encoder; got 'oral'"),
        ({"kind": "visual", "concepts": []}, "visual recipe has no concepts"),
        ({"rank": 4}, "not a whole textual recipe"),
        ({"concepts": [{"target": "a"}]}, "not a whole concept: it does not say more, less"),
        ({"concepts": [{"target": "a", "mroe": "b"}]}, "concept has no mroe; it has"),
        ({"concepts": ["old"]}, "concept is a set of named values, got 'old'"),
        ({"kind": []}, "one of textual, visual, encoder; got []"),
    ],
)
def test_what_is_no_recipe_is_refused(values, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        recipe_from(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": 4.5}, "rank must be a whole number, got 4.5"),
        ({"rank": True}, "rank must be a whole number, got True"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"seed": -1}, "seed must be 0 to 2**64 - 1, got -1"),
        ({"seed": 2**64}, "seed must be 0 to 2**64 - 1"),
        ({"learning_rate": "x"}, "learning_rate must be a number, got 'x'"),
        ({"both_signs": "no"}, "both_signs must be true or false, got 'no'"),
        ({"full_rank": 1}, "full_rank must be true or false, got 1"),
        ({"pattern": None}, "pattern must be a text, got None"),
        ({"layers": ["all"]}, "layers must be a text, got"),
        ({"notes": 3}, "notes must be a set of named values, got 3"),
        ({"start_percent": [0, 1]}, "start_percent must be a number, got (0, 1)"),
        ({"end_percent": "all"}, "end_percent must be a number, got 'all'"),
        ({"concepts": 3}, "concepts must be a list of concepts, got 3"),
        ({"concepts": [{**SAID, "more": 5}]}, "more must be a text, got 5"),
        ({"concepts": [{**SAID, "target": None}]}, "target must be a text, got None"),
        ({"concepts": [{**SAID, "preserve": "male"}]}, "preserve must be a list of texts, got 'male'"),
        ({"concepts": [{**SAID, "preserve": ["male", 1]}]}, "preserve must be a list of texts, got ('male', 1)"),
        ({"concepts": [{**SAID, "eta": "4"}]}, "eta must be a number, got '4'"),
        ({"concepts": [{**SAID, "erase": 0}]}, "erase must be true or false, got 0"),
        ({"kind": "visual", "concepts": None}, "has no concepts"),
        ({"kind": "encoder", "share": []}, "share must be a number, got ()"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_allowed(values, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        recipe_from({"concepts": [SAID], **values})


def test_whole_numbers_do_for_others():
    assert (
        recipe_from(
            {"concepts": [{**SAID, "eta": 2}], "learning_rate": 1, "start_percent": 0, "end_percent": 1}
        ).steps
        == 400
    )


def test_runs_that_differ_in_length_alone_share_their_digest():
    one, longer, other = (TextualRecipe(concepts=(AGE,), **s) for s in ({}, {"steps": 900}, {"seed": 1}))
    assert one.digest() == longer.digest() != other.digest()


def test_erasing_swaps_the_ends():
    erasing = TextualRecipe(concepts=(Concept("face", "face with glasses", "face", eta=4.0, erase=True),))
    assert erasing.ends == ("face with glasses", "face") and erasing.concepts[0].signed_eta == -4.0


def test_alpha_scales_as_in_lora_files():
    scales = [TextualRecipe(concepts=(AGE,), rank=4, alpha=alpha).scale for alpha in (0.0, 4.0, 1.0)]
    assert scales == [1.0, 1.0, 0.25]


PATHS = [
    "diffusion_model.input_blocks.1.0.in_layers.2",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2",
]


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        ("all but cross-attention", [0, 1, 3]),
        ("self-attention", [1]),
        ("cross-attention", [2]),
        ("attention", [1, 2]),
        ("all", [0, 1, 2, 3]),
        ("noxattn", [0, 1]),
        ("selfattn", [1]),
        ("xattn", [2]),
        ("full", [0, 1, 2]),
    ],
)
def test_layers_are_chosen_by_their_role_or_as_published(choice, taken):
    assert choose_layers(PATHS, choice) == [PATHS[i] for i in taken]


def test_joint_attention_is_attention_too():
    assert choose_layers(["diffusion_model.blocks.0.attn.qkv", "diffusion_model.blocks.0.mlp.0"], "attention") == [
        "diffusion_model.blocks.0.attn.qkv"
    ]


def test_a_role_the_model_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="None of the model's 1 layers"):
        choose_layers(PATHS[:1], "cross-attention")
    with pytest.raises(ValueError, match="one of"):
        choose_layers(PATHS, "norms")
    assert set(CHOICES) >= {"all", "attention"}
