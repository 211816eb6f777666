"""When an inversion shows previews, by a clock of the test's own."""

from concept_sliders.comfy_host.preview_budget import SHARE, PreviewBudget


def test_previews_take_a_small_share_of_the_time_whatever_they_cost():
    """By a clock of its own: steps of a second, previews of two."""
    clock = [0.0]
    budget, made = PreviewBudget(now=lambda: clock[0]), []
    for step in range(1000):
        clock[0] += 1.0
        if budget.has_time():
            made.append(step)
            with budget.timed():
                clock[0] += 2.0
    assert made[0] == 0 and budget.share <= SHARE
    assert len(made) > 0.9 * SHARE * clock[0] / 2.0
