"""What calibrating reads off measurements: by a probe, by the texts of the ends, along a direction."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from concept_sliders.evaluation.effects import response_of
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import EditTexts, Measured, SliderMeasurements, joined
from concept_sliders.evaluation.sweep_plan import PlannedImage, SweepPlan
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack

STRENGTHS = (-2.0, -1.0, 1.0, 2.0)
SEEDS = tuple(range(8))
WAY = F.normalize(torch.tensor([1.0, 1.0, 0.0, 0.0]), dim=0)


def measured(name="plain", readings=None, embedding=None, strengths=STRENGTHS, seeds=SEEDS):
    """readings: functions of strength and seed by name. embedding: likewise, (4,)."""
    stack = Stack.of(Slider(name, {"lora_unet_a": LowRank(torch.ones(1, 3), torch.ones(2, 1))}))
    plan = SweepPlan(stack, ("a",), seeds, strengths)
    made = tuple(image for batch in plan.batches() for image in batch)
    read = {name: torch.tensor([of(i.strength, i.seed) for i in made]) for name, of in (readings or {}).items()}
    embedded = {"seeing": torch.stack([embedding(i.strength, i.seed) for i in made])} if embedding else {}
    return Measured(plan, made, torch.zeros(len(made), 1, 1, 3), embeddings=embedded, lpips=None, readings=read)


def response(of, texts=None, instruments=None):
    return response_of(SliderMeasurements(of, 0, texts or EditTexts(), instruments))


def moving(s, seed):
    """Unit length, up to second order: along WAY with strength, with a constant of its own for each seed."""
    return torch.tensor([0.0, 0.0, 1.0, 0.1 * seed]) + 0.01 * s * WAY


READINGS = {"age": lambda s, seed: 0.1 * s + seed, "hat": lambda s, seed: 0.02 * s, "spoiled": lambda s, seed: s * s}


def test_a_probe_reads_what_the_slider_is_named_after_or_moves_most():
    assert response(measured("a hat slider", READINGS)).measured_by == "hat"
    found = response(measured(readings=READINGS))
    assert (found.measured_by, found.is_turned_round, found.strengths) == ("age", False, STRENGTHS)
    torch.testing.assert_close(
        found.effects, torch.tensor([[s / 10] * 8 for s in STRENGTHS]).double(), atol=1e-6, rtol=0
    )
    assert found.others["hat"] == pytest.approx([-0.04, -0.02, 0.02, 0.04])
    expected = [(abs(0.02 * s) + s * s) / 2 for s in STRENGTHS]
    assert found.distortions.mean(1).tolist() == pytest.approx(expected)
    assert found.spread == pytest.approx(torch.arange(8.0).std())


def test_what_falls_with_strength_is_turned():
    found = response(measured(readings={"spoiled": lambda s, seed: -s, "age": lambda s, seed: 0.0}))
    assert found.measured_by == "spoiled, falling" and found.effects.mean(1).tolist() == list(STRENGTHS)


def by_texts(more, less):
    texts = {"old": WAY, "young": -WAY}
    return EditTexts(more, less), Instruments({"seeing": None}, ("seeing", lambda asked: [texts[a] for a in asked]))


def test_texts_of_both_ends():
    found = response(measured(embedding=moving), *by_texts("old", "young"))
    assert found.measured_by == "CLIP score (seeing)" and not found.is_turned_round
    norms = (1 + 0.01 * torch.arange(8.0) ** 2).sqrt()
    expected = torch.stack([2 * s / norms for s in STRENGTHS]).double()  # 100 x 0.01 s, and as much of the other text
    torch.testing.assert_close(found.effects, expected, rtol=1e-3, atol=1e-4)


def test_labels_that_are_turned_round_are_seen():
    found = response(measured(embedding=moving), *by_texts("young", "old"))
    assert found.is_turned_round and found.effects.mean(1).tolist() == sorted(found.effects.mean(1).tolist())


def test_without_texts_the_direction_between_the_ends():
    found = response(measured(embedding=moving), instruments=Instruments({"seeing": None}))
    assert found.measured_by == "direction (seeing)"
    torch.testing.assert_close(
        found.effects, torch.tensor([[0.01 * s] * 8 for s in STRENGTHS]).double(), rtol=1e-3, atol=1e-6
    )
    assert found.coherence == pytest.approx([1.0] * 4, abs=1e-6)


def scattered(s, seed):
    """All along one axis by 0.6, and each along one of its own by 0.8."""
    return torch.ones(65) + 0.01 * s * (0.6 * torch.eye(65)[0] + 0.8 * torch.eye(65)[1 + seed])


@pytest.mark.parametrize("count", [8, 64])
def test_coherence_is_what_the_changes_have_in_common_however_few_there_are(count):
    texts = Instruments({"seeing": None}, ("seeing", lambda asked: torch.eye(65)[: len(asked)]))
    found = response(measured(embedding=scattered, seeds=tuple(range(count))), EditTexts("old", "young"), texts)
    assert found.coherence == pytest.approx([0.6] * 4, abs=1e-4)


def test_distances_by_lpips_are_taken_as_lengths():
    """It grows with the square of a small change; rounding below 0 is none."""
    of = measured(readings=READINGS)
    lpips = torch.tensor([0.01 * image.strength**2 - 1e-9 * (not image.strength) for image in of.made])
    found = response(replace(of, lpips=lpips))
    assert found.distortions.mean(1).tolist() == pytest.approx([0.2, 0.1, 0.1, 0.2])


def test_distances_alone_tell_no_effect():
    with pytest.raises(ValueError, match="takes a vision encoder or a probe"):
        response(measured(), instruments=Instruments(lpips=object()))


def test_runs_at_other_strengths_are_joined_with_each_original_once():
    parts = [measured(readings=READINGS, strengths=strengths) for strengths in ((-2.0, 2.0), (-1.0, 1.0))]
    together, whole = joined(parts), measured(readings=READINGS)
    assert together.plan.strengths == STRENGTHS
    assert len(together.made) == len(whole.made) and set(together.made) == set(whole.made)
    one, other = response(together), response(whole)
    assert torch.equal(one.effects, other.effects)


def test_only_seeds_that_have_all_strengths_count():
    of = measured(readings=READINGS)
    cut = Measured(
        of.plan, of.made[:12], of.thumbnails[:12], True, embeddings={}, lpips=None,
        readings={name: values[:12] for name, values in of.readings.items()},
    )  # fmt: skip
    assert of.made[12] != PlannedImage("a", 2)
    assert response(cut).effects.shape == (4, 2)
