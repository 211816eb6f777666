"""Settings of an inversion: the published schedule, and what is refused."""

import math

import pytest
from concept_sliders.inversion.settings import InversionSettings


def test_the_schedule_of_the_inner_loop_is_the_published_one_at_50_steps():
    settings, steps = InversionSettings(), (0, 10, 49)
    assert [settings.learning_rate_at(i, 50) for i in steps] == pytest.approx([1e-2 * (1 - i / 100) for i in steps])
    assert [settings.tolerance_at(i, 50) for i in steps] == pytest.approx([1e-5 + 2e-5 * i for i in steps])
    longer = InversionSettings(steps=200)
    assert longer.learning_rate_at(199, 200) > 0
    assert longer.tolerance_at(200, 200) == pytest.approx(settings.tolerance_at(50, 50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of null-text, negative prompt, plain; got 'magic'"),
        ({"pooled": "gone"}, "pooled must be one of held, optimised"),
        ({"steps": 0}, "steps must lie between 1 and 1000; got 0"),
        ({"cfg": math.nan}, "cfg must lie between 0 and 100; got nan"),
        ({"cfg": 1.0}, "no effect at a cfg of 1.*choose 'plain'"),
        ({"cfg": 1.0, "method": "negative prompt"}, "no effect at a cfg of 1"),
        ({"learning_rate": -1.0}, "learning_rate must lie between"),
        ({"tolerance": math.inf}, "tolerance must lie between"),
        ({"refinement": -1}, "refinement must lie between 0 and 100"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        InversionSettings(**changes)


def test_a_cfg_of_1_is_fine_for_plain_inversion():
    assert InversionSettings(method="plain", cfg=1.0).cfg == 1
