"""Verdicts on sliders that are good, weak, one-sided, entangled or turned round."""

from dataclasses import replace

import pytest
import torch
from concept_sliders.evaluation.calibration import Criteria, Response, side_of
from concept_sliders.evaluation.verdict import FAILS, PARTLY, WORKS, verdict_of

STRENGTHS = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)


def response(effect=lambda s: s, **changes):
    effects = torch.tensor([[effect(s)] * 4 for s in STRENGTHS])
    distortions = torch.tensor([[abs(s)] * 4 for s in STRENGTHS])
    return replace(Response(STRENGTHS, effects, distortions, "age", spread=2.0), **changes)


def judged(of):
    return verdict_of(of, *(side_of(of, sign, Criteria()) for sign in (1, -1)))


def test_a_good_slider_works():
    verdict = judged(response(others={"hat": [-0.4, -0.2, -0.1, 0.1, 0.2, 0.4]}, coherence=(0.9,) * 6))
    assert (verdict.grade, verdict.findings) == (WORKS, ())


@pytest.mark.parametrize(
    ("of", "grade", "what", "todo"),
    [
        (response(lambda s: 0.0), FAILS, "nothing beyond chance at strengths -4 to 4", "Apply Sliders"),
        (response(spread=100.0), FAILS, "too weak: from end to end it moves age by 8", "Train it for longer"),
        (response(lambda s: max(s, s / 8)), PARTLY, "its minus side reaches 12% of what", "prompts that show more"),
        (response(lambda s: max(s, 0.0)), PARTLY, "its minus side does nothing", "more and less exchanged"),
        (
            response(others={"hat": [3.0, 1.5, 0.8, -0.8, -1.5, -3.0]}),
            PARTLY,
            "it moves hat by -6.00, and age by 8.00",
            "Name hat among the phrases to preserve",
        ),
        (response(coherence=(0.15,) * 6), PARTLY, "15% is common to the images", "phrases to preserve"),
        (response(is_turned_round=True), WORKS, "turned round", "labels of its ends are exchanged"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(of, grade, what, todo):
    verdict = judged(of)
    (finding,) = verdict.findings
    assert verdict.grade == grade and what in finding.what and todo in finding.todo
