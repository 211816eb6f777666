"""A sweep: what its images change by, from one end of a slider to the other."""

import pytest
import torch
from concept_sliders.evaluation.sweep import Sweep
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack


def slider(name):
    return Stack.of(Slider(name, {"lora_unet_mid": LowRank(torch.ones(1, 4), torch.ones(4, 1))}))


@pytest.fixture
def sweep():
    """Two sliders at -2, -1, 1 and 2, one prompt, two seeds; all images made."""
    stack = slider("a") + slider("b")
    plan = SweepPlan(stack, ("portrait",), (0, 1), (-2.0, -1.0, 1.0, 2.0))
    made = tuple(image for batch in plan.batches() for image in batch)
    return Sweep(plan, made, torch.zeros(len(made), 4, 4, 3))


def values_of(sweep):
    """(N, 2): a slider moves its own column by its strength, and seeds differ by 10."""
    rows = [[10.0 * image.seed] * 2 for image in sweep.made]
    for row, image in zip(rows, sweep.made):
        if image.slider is not None:
            row[image.slider] += image.strength
    return torch.tensor(rows)


def test_from_end_to_end_each_slider_moves_its_own(sweep):
    values = values_of(sweep)
    assert sweep.end_to_end(0, values).tolist() == [4.0, 0.0]
    assert sweep.end_to_end(1, values).tolist() == [0.0, 4.0]


def test_of_a_cancelled_run_those_count_that_have_both_ends(sweep):
    missing = {(1, 1, 2.0), (0, 1, 2.0), (0, 0, 2.0)}  # slider, seed, strength
    kept = tuple(i for i in sweep.made if (i.slider, i.seed, i.strength) not in missing)
    short = Sweep(sweep.plan, kept, torch.zeros(len(kept), 4, 4, 3), cancelled=True)
    values = values_of(short)
    assert short.end_to_end(1, values).tolist() == [0.0, 4.0]  # of the first seed
    assert short.end_to_end(0, values).tolist() == [3.0, 0.0]  # to the highest that was made at all
    nothing = Sweep(sweep.plan, tuple(i for i in sweep.made if i.slider is None), torch.zeros(2, 4, 4, 3))
    assert nothing.end_to_end(0, torch.zeros(2, 2)) is None


def test_under_other_names_the_images_are_the_same(sweep):
    renamed = slider("old") + slider("wide")
    other = sweep.of(renamed)
    assert [each.slider.name for each in other.plan.stack] == ["old", "wide"]
    assert other.made == sweep.made and other.thumbnails is sweep.thumbnails
