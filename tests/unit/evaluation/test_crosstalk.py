"""Effects of sliders on each other's attributes: closed forms, words, files, and the picture."""

import csv
import io
import json

import pytest
import torch
from concept_sliders.evaluation.crosstalk import Effects, effects_of
from concept_sliders.evaluation.crosstalk_tables import (
    as_csv,
    as_json,
    as_text,
    effects_from,
    sentence,
    shown_columns,
    write_report,
)
from concept_sliders.evaluation.matrix_plot import CELL, LESS, MORE, Matrix, draw_crosstalk, draw_matrix
from concept_sliders.evaluation.measurements import Measured
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

TRUE = {"age": {"age": 0.30, "glasses": 0.12}, "glasses": {"age": -0.05, "glasses": 0.40}}
READINGS = ("hat", "age", "glasses")


def stack(names):
    sliders = [
        Slider(name, {"a": LowRank(torch.full((1, 4), 1.0 + n), torch.ones(4, 1))}) for n, name in enumerate(names)
    ]
    return sum((Stack.of(one, 3.0) for one in sliders), Stack())


def plan_of(names=tuple(TRUE), seeds=4, strengths=(-2.0, 2.0)):
    return SweepPlan(stack(names), ("p",), tuple(range(seeds)), strengths)


def measured(plan, readings=None, embeddings=None, drop=0):
    made = tuple(planned for batch in plan.batches() for planned in batch)[: plan.count - drop]
    columns = [] if readings is None else READINGS
    return Measured(
        plan,
        made,
        torch.zeros(len(made), 4, 4, 3),
        drop > 0,
        embeddings={} if embeddings is None else {"eye": torch.stack([embeddings(planned) for planned in made])},
        lpips=None,
        readings={name: torch.tensor([readings(planned, name) for planned in made]) for name in columns},
    )


def linear(planned, reading):
    """A reading that a slider moves in proportion to its strength, from another origin for each seed."""
    slope = 0.0 if planned.slider is None else list(TRUE.values())[planned.slider].get(reading, 0.0) / 2
    return 0.1 * planned.seed + slope * planned.strength


def noisy(planned, reading):
    """The same, and at the positive end 0.02 more on even seeds, as much less on odd ones."""
    return linear(planned, reading) + (0.02 * (-1) ** planned.seed if planned.strength > 0 else 0.0)


def of(readings=noisy, **plan):
    return effects_of(measured(plan_of(**plan), readings))


def test_effects_are_half_of_what_lies_between_the_ends():
    effects = of(linear)
    assert effects.columns == READINGS and effects.own == (1, 2) and effects.strength == 2.0 and effects.series == 4
    expected = torch.tensor([[0.0, 0.30, 0.12], [0.0, -0.05, 0.40]], dtype=torch.float64)
    torch.testing.assert_close(effects.matrix, expected, atol=1e-6, rtol=0)
    assert effects.errors.max() < 1e-6 and effects.own_effect(1) == pytest.approx(0.4)


def test_the_error_is_that_of_the_mean_over_seeds():
    effects = of()
    torch.testing.assert_close(effects.matrix, of(linear).matrix, atol=1e-6, rtol=0)
    spread = torch.tensor([0.01, -0.01, 0.01, -0.01]).std() / 2
    torch.testing.assert_close(effects.errors, torch.full((2, 3), float(spread)).double(), atol=1e-6, rtol=0)
    assert effects.beyond_chance.tolist() == [[False, True, True], [False, True, True]]


def test_a_slider_without_an_attributes_name_is_for_what_it_moves_most():
    assert of(linear, names=("old people", "spectacles")).own == (1, 2)


def test_prompts_and_seeds_that_a_cancelled_run_lacks_do_not_count():
    effects = effects_of(measured(plan_of(), linear, drop=3))
    assert effects.series == 3
    torch.testing.assert_close(effects.matrix, of(linear).matrix, atol=1e-6, rtol=0)


def test_directions_are_in_parts_of_own_effects():
    """Slider 1 moves by (2, 0), slider 2 by (1, 1): along the first that is 2 / 4, the other way 2 / 2."""
    ways = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])

    def moved(planned):
        start = torch.tensor([0.0, 1.0, float(planned.seed)])
        return start + (0 if planned.slider is None else ways[planned.slider] * planned.strength)

    effects = effects_of(measured(plan_of(), embeddings=moved))
    assert effects.encoder == "eye" and effects.columns == ("age", "glasses") and effects.own == (0, 1)
    torch.testing.assert_close(effects.matrix, torch.tensor([[1.0, 1.0], [0.5, 1.0]]).double())


def test_noise_in_single_images_is_no_effect():
    """Sliders that move each image at random, both the same way, share no effect."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(8, 512, generator=generator) / 8

    def moved(planned):
        sway = noise[planned.seed] * planned.strength
        return sway + (torch.eye(512)[planned.slider] * planned.strength if planned.slider is not None else 0)

    effects = effects_of(measured(plan_of(seeds=8), embeddings=moved))
    assert effects.matrix[0, 1].abs() < 0.25 and effects.matrix[1, 0].abs() < 0.25  # 0.5 if images met themselves
    torch.testing.assert_close(effects.matrix.diagonal(), torch.ones(2).double())


def test_a_slider_that_moves_nothing_has_no_column():
    def moved(planned):
        return torch.tensor([1.0, planned.strength if planned.slider == 0 else 0.0])

    effects = effects_of(measured(plan_of(), embeddings=moved))
    assert effects.matrix[:, 1].tolist() == [0.0, 0.0] and effects.matrix[:, 0].tolist() == [1.0, 0.0]
    assert (
        sentence(effects, 1)
        == "glasses does not move images one way by more than chance; it moves nothing else by more than chance."
    )


def test_what_gives_no_effects_is_refused():
    with pytest.raises(ValueError, match=r"two strengths, -s and s; got \(-1.0, 2.0\)"):
        effects_of(measured(plan_of(strengths=(-1.0, 2.0)), linear))
    with pytest.raises(ValueError, match=r"at least two prompts and seeds.*got 1. Give more seeds"):
        of(seeds=1)
    with pytest.raises(ValueError, match="read by neither"):
        effects_of(measured(plan_of()))


def test_sentences_name_what_is_moved_by_more_than_chance():
    effects = of()
    assert sentence(effects, 0) == "age moves age by +0.30; it also moves glasses by +0.12."
    assert sentence(effects, 1) == "glasses moves glasses by +0.40; it also moves age by -0.05."
    alone = of(lambda planned, name: noisy(planned, name) if name != "age" else 0.0, names=("glasses", "hat"))
    assert sentence(alone, 1).startswith("hat does not move hat by more than chance; it also moves glasses by +0.40")
    directions = Effects(
        ("a", "b"), ("1", "2"), ("a", "b"), (0, 1), torch.eye(2) + 0.2, torch.full((2, 2), 0.01), 1.0, 8, "eye"
    )
    assert sentence(directions, 0) == "a also moves towards b by +0.20."


def test_the_table_has_what_sliders_are_for_first():
    effects = of(lambda planned, name: noisy(planned, name) + (planned.strength if name == "hat" else 0.0))
    assert [effects.columns[j] for j in shown_columns(effects)] == ["age", "glasses", "hat"]
    text = as_text(effects, torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
    assert "Effect of each slider from strength 0 to 2, with its standard error, over 4 prompts and seeds" in text
    assert [line.split()[:4] for line in text.splitlines()[2:4]] == [
        ["age", "+0.30", "±", "0.01"],
        ["glasses", "-0.05", "±", "0.01"],
    ]
    assert text.splitlines()[-1].split() == ["glasses", "+0.25", "+1.00"]


def test_files_have_all_and_can_be_read_again(tmp_path):
    effects, cosines = of(), torch.tensor([[1.0, 0.25], [0.25, 1.0]])
    write_report(tmp_path / "report", effects, cosines, {"prompts": ("p",)})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    again = effects_from(text)
    assert (again.sliders, again.hashes, again.columns, again.own) == (
        effects.sliders,
        effects.hashes,
        READINGS,
        (1, 2),
    )
    assert torch.equal(again.matrix, effects.matrix) and torch.equal(again.errors, effects.errors)
    assert json.loads(text)["cosines"][0][1] == 0.25 and json.loads(text)["prompts"] == ["p"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text(encoding="utf-8"))))
    assert as_csv(effects, cosines) == (tmp_path / "report.csv").read_text(encoding="utf-8")
    assert float(rows[1]["age"]) == float(effects.matrix[1, 1]) and rows[1]["cosine with age"] == "0.25"


@pytest.mark.parametrize("change", [
    lambda plain: "not JSON",
    lambda plain: "[1]",
    lambda plain: json.dumps({"version": 1}),
    lambda plain: json.dumps({"effects": {**plain["effects"], "matrix": [[1.0]]}}),
    lambda plain: json.dumps({"effects": {**plain["effects"], "matrix": "x"}}),
    lambda plain: json.dumps({"effects": {**plain["effects"], "own": [0, 9]}}),
])  # fmt: skip
def test_what_is_no_report_is_refused(change):
    with pytest.raises(ValueError, match="not effects as Slider Report puts them out"):
        effects_from(change(json.loads(as_json(of()))))


def test_rows_of_some_sliders_in_another_order():
    effects = of(names=("age", "glasses"))
    picked = effects.of([effects.hashes[1], effects.hashes[0]])
    assert picked.sliders == ("glasses", "age") and picked.own == (2, 1)
    assert torch.equal(picked.matrix, effects.matrix.flip(0))
    with pytest.raises(KeyError):
        effects.of(["another"])


def test_the_picture_has_both_matrices_in_the_colours_of_their_numbers():
    picture = draw_crosstalk(of(), torch.eye(2))
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.min() >= 0 and picture.max() <= 1
    values = torch.tensor([[1.0, -1.0], [0.0, 0.5]])
    drawn = draw_matrix(Matrix("t", "n", ("a", "b"), ("a", "b"), values, 1.0, (0, 1)))
    pixels = {drawn.getpixel((x, y)) for x in range(drawn.width) for y in range(drawn.height)}
    assert {MORE, LESS, (255, 255, 255)} <= pixels
    long = draw_matrix(Matrix("t", "n", ("a", "b"), ("a", "pocket hair shade"), values, 1.0, (0, 1)))
    short = draw_matrix(Matrix("t", "n", ("a", "b"), ("a", "pocket hair"), values, 1.0, (0, 1)))
    assert long.size == short.size and long.tobytes() != short.tobytes()  # the last word is not cut off
    many = torch.eye(20)
    names = [f"slider {n}" for n in range(20)]
    large = draw_matrix(Matrix("t", "n", names, names, many, 1.0, range(20)))
    assert large.width < 20 * CELL[0]
