"""The peak memory of training beyond the loaded model, for every family and setting.

    python3 dev.py bench memory [--sizes tiny sd15] [--write]

tiny: every family of models that ComfyUI builds, as the tests have them, in float32; sd15: an SD1.5-size model with
random weights at --side latent pixels. Each row is a whole run of two steps, with trajectories, slider, optimiser and
the state that it falls back on: on CUDA by the allocator, elsewhere by following every tensor. --write puts
the table into docs/memory.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import _models
import torch
from _live import peak_memory
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import GRADIENT_CHECKPOINTING, TextualRecipe
from concept_sliders.training.run import RunOptions, train_textual

log = logging.getLogger("bench")
CONCEPT = Concept("person", "old person", "young person", eta=4.0)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "memory.md"
# (title, images a step, settings of the recipe)
SETTINGS = [
    ("rank 4", 1, {}),
    ("rank 16", 1, {"rank": 16}),
    ("batch 2", 2, {}),
    ("gradient checkpointing", 1, {"memory": GRADIENT_CHECKPOINTING}),
    ("gradient checkpointing, batch 2", 2, {"memory": GRADIENT_CHECKPOINTING}),
]
HEAD = """# Memory of training

The peak memory of training beyond the loaded model, in MiB, by `python3 dev.py bench memory --write`: whole
runs of two steps, with their trajectories, the slider, its optimiser and the state that a run falls back on. At the
size of SD1.5 that is a fraction of the model: no second copy is made. {how}

The tiny models of the tests show how settings compare on each family; their figures are small because the models are.
"""


def measured(model, conditionings: dict, empty: Callable[[int], torch.Tensor], batch: int, settings: dict) -> float:
    """Return the peak of one run in MiB."""
    recipe = TextualRecipe(concepts=(CONCEPT,), steps=2, rollout_steps=2, samples_per_rollout=2, **settings)
    latents = empty(batch)
    with torch.inference_mode(), peak_memory(model.load_device) as peak:
        train_textual(model, conditionings, recipe, latents, "memory", RunOptions(preview_every=0))
    return peak.bytes / 2**20


def row(name: str, model, conditionings: dict, empty: Callable[[int], torch.Tensor]) -> list[str]:
    size = sum(p.numel() * p.element_size() for p in model.model.parameters()) / 2**20
    peaks = [measured(model, conditionings, empty, batch, settings) for _, batch, settings in SETTINGS]
    cells = [name, f"{size:.3g}", *(f"{peak:.3g}" for peak in peaks)]
    log.info("| %s |", " | ".join(cells))
    return cells


def tiny_rows() -> list[list[str]]:
    rows = []
    for name, family in FAMILIES.items():
        with torch.inference_mode():
            model = family.build()
            conditionings = {prompt: family.conditioning(n) for n, prompt in enumerate((*CONCEPT.prompts(), ""))}
        rows.append(row(f"{name}, tiny", model, conditionings, family.empty))
    return rows


def sd15_row(side: int) -> list[str]:
    with torch.inference_mode():
        model = _models.full_size("sd15")
        context = _models.SIZES["sd15"][1]["context_dim"]
        conditionings = {prompt: [[torch.randn(1, 77, context), {}]] for prompt in (*CONCEPT.prompts(), "")}
    return row(f"SD1.5 size, {8 * side} px", model, conditionings, lambda batch: torch.zeros(batch, 4, side, side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "sd15"), default=["tiny", "sd15"])
    parser.add_argument("--side", type=int, default=32, help="of the SD1.5-size model's latents")
    parser.add_argument("--write", action="store_true", help="into docs/memory.md")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    head = ["family", "the model", *(title for title, _, _ in SETTINGS)]
    log.info("| %s |", " | ".join(head))
    rows = [sd15_row(options.side)] if "sd15" in options.sizes else []
    rows += tiny_rows() if "tiny" in options.sizes else []
    if options.write:
        on = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, in float32"
        lines = [HEAD.format(how=f"Measured on {on}."), *(f"| {' | '.join(cells)} |" for cells in (head, *rows))]
        lines.insert(2, "| " + " | ".join("---" for _ in head) + " |")
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
