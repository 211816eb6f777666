"""A slider's scores, its table, its plots and its files, from measurements whose outcome is known."""

import csv
import json
import math

import pytest
import torch
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurement_files import write_measurements
from concept_sliders.evaluation.measurements import EditTexts, Measured, SliderMeasurements
from concept_sliders.evaluation.plots import COLOURS, Axis, Curve, draw_plot, plots
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.evaluation.tables import as_text, slider_table
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

STRENGTHS = (-2.0, -1.0, 1.0)
DEGREES = 10.0  # by which strength 1 turns an image towards the text of more


def stack(name="age"):
    return Stack.of(Slider(name, {"lora_unet_mid": LowRank(torch.ones(1, 4), torch.ones(4, 1))}))


def at(degrees):
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def measured(name="age", readings=(), lpips=False, drop=0):
    """A run whose images stand at 45 - 10 s degrees from the text of more, and one degree more for each seed."""
    plan = SweepPlan(stack(name), ("p",), (0, 1, 2), STRENGTHS)
    made = tuple(planned for batch in plan.batches() for planned in batch)[: plan.count - drop]
    strengths = torch.tensor([planned.strength for planned in made])
    return Measured(
        plan,
        made,
        torch.zeros(len(made), 4, 4, 3),
        drop > 0,
        embeddings={"eye": torch.stack([at(45 - DEGREES * s.strength + s.seed) for s in made])},
        lpips=strengths.abs() / 10 if lpips else None,
        readings={name: 0.5 + factor * strengths for name, factor in readings},
    )


def joint(texts):
    return torch.stack([{"more": at(0), "less": at(90)}[text] for text in texts])


SEEING = Instruments({"eye": lambda images: images}, ("eye", joint))
BLIND = Instruments({"eye": lambda images: images})


class Named:
    name = "alex"


def cos(degrees):
    return math.cos(math.radians(degrees))


def test_the_effect_is_the_delta_clip_score_where_there_is_one():
    of = SliderMeasurements(measured(), 0, EditTexts("more", "less"), SEEING)
    assert (of.effect, of.distortion) == ("delta CLIP", "distance (eye)")
    table = slider_table(of)
    assert [row.strength for row in table.rows] == [-2, -1, 0, 1]
    for row in table.rows:
        moved = torch.tensor([100 * (cos(45 - 10 * row.strength + k) - cos(45 + k)) for k in range(3)])
        assert row.images == 3
        assert row.scores["delta CLIP"] == pytest.approx((float(moved.mean()), float(moved.std())), abs=1e-4)
        assert row.scores["|delta CLIP|"][0] == pytest.approx(float(moved.abs().mean()), abs=1e-4)
        assert row.scores["distance (eye)"][0] == pytest.approx(1 - cos(10 * row.strength), abs=1e-6)


def test_the_scores_over_all_strengths_are_those_of_the_formulas():
    whole = SliderMeasurements(measured(), 0, EditTexts("more", "less"), SEEING).whole
    ranges = [
        50 * (cos(35 + k) - cos(65 + k) + math.sin(math.radians(65 + k)) - math.sin(math.radians(35 + k)))
        for k in range(3)
    ]
    assert whole.conceptual_range == pytest.approx(sum(ranges) / 3, abs=1e-4)
    distances = [1 - cos(20), 1 - cos(10), 1 - cos(10)]
    assert whole.semantic_preservation == pytest.approx(sum(distances) / 3, abs=1e-6)
    smooth = []
    for k in range(3):
        sides = [0, cos(45 + k), cos(35 + k), 1], [0, cos(45 - k), cos(35 - k), cos(25 - k), 1]
        gaps = torch.cat([torch.tensor(side, dtype=torch.float64).diff() for side in sides])
        smooth.append(float(gaps.std(correction=0)))
    assert whole.conceptual_smoothness == pytest.approx(sum(smooth) / 3, abs=1e-5)
    expected = whole.conceptual_range / (1 + whole.semantic_preservation) + 1 - whole.conceptual_smoothness
    assert whole.overall_score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "effect"), [("pocket_age", "age"), ("Hair Length", "hair_length"), ("a vintage look", "hair_length")]
)
def test_without_a_clip_score_the_effect_is_the_reading_it_is_named_after_or_moves_most(name, effect):
    readings = (("age", 0.05), ("hair", 0.01), ("hair_length", -0.1))
    of = SliderMeasurements(measured(name, readings), 0, EditTexts(), BLIND)
    table = slider_table(of)
    assert table.effect == effect
    assert table.movements == pytest.approx({"age": 0.15, "hair": 0.03, "hair_length": -0.3})
    assert "moved most, end to end: hair_length -0.30, age +0.15" in as_text(table)


def test_the_distortion_is_lpips_or_the_distance_or_the_other_readings_and_the_table_says_which():
    run, readings = measured(lpips=True), (("age", 0.1), ("smile", 0.02), ("sky", -0.04))
    of = SliderMeasurements(run, 0, EditTexts(), Instruments({"eye": lambda x: x}, lpips=Named()))
    assert (of.effect, of.distortion) == ("LPIPS (alex)", "LPIPS (alex)")
    assert of.whole.semantic_preservation == pytest.approx(0.4 / 3)
    probed = measured(readings=readings)
    probed.embeddings.clear()
    of = SliderMeasurements(probed, 0, EditTexts(), Instruments(probe=lambda images: {}))
    table = slider_table(of)
    assert table.distortion == "change of the other readings"
    assert table.distortions[0][0] == pytest.approx(2 * 0.03)
    assert "effect by age, distortion by change of the other readings; 3 images a strength" in as_text(table)


def test_a_run_that_was_cut_off_is_summed_up_as_far_as_it_went():
    of = SliderMeasurements(measured(drop=2), 0, EditTexts("more", "less"), SEEING)
    table = slider_table(of)
    assert [row.images for row in table.rows] == [3, 2, 3, 2]
    assert "2 to 3 images a strength" in as_text(table)
    assert of.whole.conceptual_range is not None  # of the two series that are complete


def test_files_have_the_numbers_of_the_table_and_of_every_image(tmp_path):
    of = SliderMeasurements(measured(readings=(("age", 0.1),)), 0, EditTexts("more", "less"), SEEING)
    table = slider_table(of)
    write_measurements(tmp_path / "run", [of], [table], {"cancelled": False})
    lines = list(csv.DictReader((tmp_path / "run.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(line["strength"]) for line in lines] == [-2, -1, 0, 1]
    assert [float(line["delta CLIP"]) for line in lines] == [row.scores["delta CLIP"][0] for row in table.rows]
    assert [float(line["Fréchet (eye)"]) for line in lines] == [row.frechet["eye"] for row in table.rows]
    content = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert content["cancelled"] is False and len(content["images"]) == 12
    (slider,) = content["sliders"]
    assert slider["overall_score"] == table.whole.overall_score and slider["more"] == "more"
    ages = [image["scores"]["age"] for image in content["images"] if image["strength"] == -2]
    assert slider["rows"][0]["scores"]["age"]["mean"] == pytest.approx(sum(ages) / 3) == pytest.approx(-0.2)


def test_neither_file_is_left_if_one_cannot_be_written(tmp_path):
    of = SliderMeasurements(measured(), 0, EditTexts("more", "less"), SEEING)
    (tmp_path / "run.json").mkdir()  # where the file is to go
    (tmp_path / "run.json" / "something").touch()
    with pytest.raises(OSError, match=r"Cannot write the measurements to .*run.json and .csv"):
        write_measurements(tmp_path / "run", [of], [slider_table(of)], {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("values", "low", "high", "step"),
    [((0.0, 10.0), 0, 10, 2), ((-0.013, 0.029), -0.02, 0.03, 0.01), ((3.0, 3.0), 2.4, 3.6, 0.2), ((-2, 2), -2, 2, 1)],
)
def test_axes_end_at_round_values(values, low, high, step):
    axis = Axis.over(values, 100, 300)
    assert (axis.low, axis.high, axis.step) == pytest.approx((low, high, step), abs=1e-9)
    assert axis(axis.low) == 100 and axis(axis.high) == pytest.approx(300)
    assert axis.ticks[-1] == pytest.approx(axis.high)


def test_a_plot_has_each_curve_in_its_colour_where_its_numbers_are():
    rising = Curve("one", (0, 1, 2), (0, 1, 2), spread=(0.2, 0.2, 0.2))
    falling = Curve("two", (0, 1, 2), (2, 1, 0), labels=("a", "b", "c"))
    image = (draw_plot([rising, falling], "title", "x", "y") * 255).round().int()
    assert image.shape == (480, 720, 3)

    def rows(colour, columns):
        found = (image[56:420, columns] == torch.tensor(colour)).all(-1)
        return found.nonzero()[:, 0].float().mean()

    left, right = slice(84, 150), slice(630, 696)
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert rows(blue, left) > rows(blue, right) + 100 and rows(orange, left) < rows(orange, right) - 100


def test_the_legend_takes_as_many_lines_as_it_needs():
    """Every curve's colour stands in it, above the axes, which stay free of it."""
    curves = [Curve(f"a slider of a long name, {n}", (0, 1), (0.0, 0.1 * n)) for n in range(len(COLOURS))]
    image = (draw_plot(curves, "title", "x", "y") * 255).round().int()
    swatches = [(image == torch.tensor(colour)).all(-1).nonzero()[:, 0] for colour in COLOURS]
    firsts = [int(rows.min()) for rows in swatches]
    assert firsts == sorted(firsts) and len(set(firsts)) > 2
    assert all(((rows >= first) & (rows <= first + 10)).sum() == 121 for rows, first in zip(swatches, firsts))


def test_the_plots_of_a_table_are_two_images():
    table = slider_table(SliderMeasurements(measured(), 0, EditTexts("more", "less"), SEEING))
    drawn = plots([table, table])
    assert drawn.shape == (2, 480, 720, 3) and float(drawn.min()) >= 0 and not torch.equal(drawn[0], drawn[1])
