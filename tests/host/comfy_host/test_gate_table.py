"""The page that says which steps a gate's fractions mean."""

import os
from pathlib import Path

import comfy.samplers
from concept_sliders.comfy_host.sampling_run import percent_to_sigma
from concept_sliders.sliders.gate import Gate
from concept_sliders.tests.support.families import FAMILIES

PAGE = Path(__file__).parents[3] / "docs" / "gates.md"
STEPS = (8, 20, 30)
FRACTIONS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SCHEDULERS = ("normal", "simple", "sgm_uniform", "ddim_uniform", "karras", "exponential", "beta", "kl_optimal")
FLOW_SCHEDULERS = ("normal", "simple", "beta", "kl_optimal")
MODELS = {  # a family of the tests, and the schedulers that people use on models of its kind
    "SD 1, SD 2, SDXL": ("SDXL", SCHEDULERS),
    "Flux (shift 1.15)": ("Flux", FLOW_SCHEDULERS),
    "SD3, Z-Image (shift 3)": ("SD3", FLOW_SCHEDULERS),
    "Wan 2.1 (shift 8)": ("Wan 2.1", FLOW_SCHEDULERS),
}
HEAD = """# Gates, in steps

A gate from *start_percent* to *end_percent* acts where sigma(start) >= sigma > sigma(end), and down to the last step
where the end is 1. What counts is the sigma of each evaluation of the model: with samplers that also evaluate between
two steps, a step's first evaluation may be without the slider and its second with it. Two gates that meet, one until
0.25 and one from 0.25, share no evaluation. ComfyUI's own ranges (*ConditioningSetTimestepRange*) contain both ends:
where a step's sigma is exactly sigma(end), the range still has that step, and the gate has not.

A fraction stands for one of the model's noise levels. Which step that is depends on the model, the scheduler and the
number of steps. Each cell has, for 8, for 20 and for 30 steps, the first step on which a slider acts whose gate
starts there, counted from 1. One whose gate ends there acts until the step before. A dash: no step is left for it.

`tests/host/comfy_host/test_gate_table.py` makes this page; with `CONCEPT_SLIDERS_WRITE_TABLES=1` it writes it anew.
"""


def first_step(sampling, scheduler: str, steps: int, fraction: float) -> str:
    """The first of the steps on which a gate from this fraction on is open, counted from 1."""
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    gate, sigma_at = Gate(fraction), percent_to_sigma(sampling, sigmas.dtype)
    steps_open = (n for n, sigma in enumerate(sigmas[:-1], start=1) if gate.factor_at(float(sigma), sigma_at))
    return str(next(steps_open, "-"))


def test_the_table_is_up_to_date():
    sections = [HEAD]
    for title, (family, schedulers) in MODELS.items():
        sampling = FAMILIES[family].build().model.model_sampling
        lines = [f"## {title}", "", "| scheduler | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " |"]
        lines.append("| --- " * (len(FRACTIONS) + 1) + "|")
        for scheduler in schedulers:
            cells = [", ".join(first_step(sampling, scheduler, n, f) for n in STEPS) for f in FRACTIONS]
            lines.append(f"| {scheduler} | " + " | ".join(cells) + " |")
        sections += ["\n".join(lines) + "\n"]
    page = "\n".join(sections)
    if os.environ.get("CONCEPT_SLIDERS_WRITE_TABLES") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
