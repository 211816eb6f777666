"""Which images a plan asks for, in which batches, and what it refuses."""

import pytest
import torch
from concept_sliders.evaluation.sweep_plan import PlannedImage, SweepPlan, parse_seeds
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack


def slider(name, *layers):
    return Slider(name, {layer: LowRank(torch.ones(1, 4), torch.ones(4, 1)) for layer in layers})


UNET, TEXT = "lora_unet_mid", "lora_te_text_model_mid"
AGE = Stack.of(slider("age", UNET), 5.0, Gate(start=0.3))
SMILE, WORDS = Stack.of(slider("smile", UNET)), Stack.of(slider("words", TEXT))


def plan(stack, **others):
    return SweepPlan(**{"stack": stack, "prompts": ("a", "b"), "seeds": (1, 2), "strengths": (-1.0, 2.0), **others})


def test_every_slider_is_alone_at_every_strength_and_the_original_is_made_once():
    found = plan(AGE + SMILE, batch_size=3)
    batches = found.batches()
    made = [planned for batch in batches for planned in batch]
    assert len(made) == len(set(made)) == found.count == 2 * 2 * 5
    assert all(len({planned.prompt for planned in batch}) == 1 and len(batch) <= 3 for batch in batches)
    assert {planned.original for planned in made} == {planned for planned in made if planned.slider is None}
    for at, planned in enumerate(made):
        assert made.index(planned.original) <= at


def test_prompts_that_are_sampled_apart_have_seeds_of_their_own():
    found = plan(AGE, prompts=("a", "b", "c"), seeds=(3, 1, 9), apart=True)
    made = [planned for batch in found.batches() for planned in batch]
    assert len(made) == found.count == 3 * 3 * 3
    seeds = {prompt: {planned.seed for planned in made if planned.prompt == prompt} for prompt in found.prompts}
    assert seeds == {"a": {1, 3, 9}, "b": {10, 12, 18}, "c": {19, 21, 27}}


def test_seeds_of_their_own_stay_within_the_largest():
    found = plan(AGE, seeds=(2**64 - 2, 2**64 - 1), apart=True)
    assert found.seeds_of("b") == (0, 1)


def test_a_batch_has_one_strength_for_each_image_and_keeps_the_gates():
    found = plan(AGE + SMILE)
    batch = [
        PlannedImage("a", 1),
        PlannedImage("a", 1, 0, -1.0),
        PlannedImage("a", 1, 1, 2.0),
        PlannedImage("a", 2, 0, 2.0),
    ]
    stack = found.stack_of(batch)
    assert [each.strength for each in stack] == [(0.0, -1.0, 0.0, 2.0), (0.0, 0.0, 2.0, 0.0)]
    assert [each.gates for each in stack] == [AGE[0].gates, ()]
    assert len(found.stack_of(batch[:1])) == 0


def test_images_of_a_slider_on_the_text_encoder_share_a_batch_only_at_one_strength():
    batches = plan(AGE + WORDS, batch_size=100).batches()
    assert [len(batch) for batch in batches] == [6, 2, 2] * 2
    for batch in batches:
        assert len({(s.slider, s.strength) for s in batch if s.slider == 1}) <= 1


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (3,)), ("1, 7 2", (1, 7, 2)), ("4:6", (4, 5, 6)), (f"{2**64 - 1}", (2**64 - 1,))]
)
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1.5", "3:1", "-1", "0:1024", f"{2**64}"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match=r"[Ss]eeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"stack": Stack()}, "at least one slider"),
        ({"prompts": ()}, "at least one of prompts"),
        ({"seeds": (1, 1)}, r"at least one of seeds, each once; got \[1, 1\]"),
        ({"strengths": ()}, "at least one of strengths"),
        ({"strengths": (2.0, 1.0)}, "in rising order"),
        ({"strengths": (0.0, 1.0)}, "without 0"),
        ({"strengths": (float("inf"),)}, "finite"),
        ({"batch_size": 0}, "got a batch size of 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        plan(**{"stack": AGE, **given})
