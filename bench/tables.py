"""The published tables' equivalents: sliders against baselines, by words and by pairs, ablations, stacks, repair.

    python3 dev.py bench tables [--only a b c d e] [--seeds 3] [--people 16] [--iterations 400] [--concepts age ...]
        [--composed 2 5 10 20 50] [--cache FOLDER] [--out FOLDER] [--ab] [--docs]
    python3 dev.py bench tables --checkpoint FILE --clip-vision FILE [--lpips FILE] [--size 1024]

    a  sliders by words, of twelve concepts (of thirty on a real model), against the attribute in the prompt after a
       fixed number of steps, composition by guidance, and the audition
    b  sliders by six pairs, of eye size and of the brow, which no caption names; on a real model of --pairs FOLDER
    c  low rank against full, with and without preserved phrases
    d  2, 5, 10, 20 and 50 sliders at once
    e  spoiled images before and after repair; on a real model against the good images of --photos FOLDER

Every figure is a mean over images, and its spread is over training seeds; each training seed has its own images,
which all methods share. What was trained and measured is kept in --cache by a hash of all that decides it, so that a
run that was cut off goes on, and a larger one takes over what a smaller one has. --out has the tables, their pictures
and all figures as JSON; with --ab a page on which people choose between ours and the baselines, blindly; --docs
writes the tables into docs/results.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields

import _models
import torch
from _tables_ablations import ablations
from _tables_composing import composing
from _tables_options import parsed
from _tables_output import compared, write_docs, write_figures, write_picture
from _tables_repair import repair
from _tables_report import Section
from _tables_studio import Counts, Studio
from _tables_textual import textual
from _tables_visual import visual
from concept_sliders.devtools.steps import write_whole

log = logging.getLogger("bench")


def parts_of(studio: Studio, options: argparse.Namespace) -> Mapping[str, Callable[[], Section]]:
    seeds = range(options.seeds)
    return {
        "a": lambda: textual(studio, options.subjects, seeds),
        "b": lambda: visual(studio, options.pairs, options.pairs_prompt, seeds),
        "c": lambda: ablations(studio, options.ablated, seeds),
        "d": lambda: composing(studio, options.subjects, options.pairs, options.composed, seeds),
        "e": lambda: repair(studio, options.photos, seeds),
    }


def facts(studio: Studio, options: argparse.Namespace, part: str) -> str:
    """Say with which counts a part was made."""
    of = studio.counts
    by_words = f"{of.iterations} iterations by words at batch {of.batch}"
    by_pairs = f"{of.visual_iterations} by pairs"
    trained = {"b": f"{by_words} and {by_pairs}", "d": f"{by_words} and {by_pairs}"}.get(part, by_words)
    seeds = f"{options.seeds} training seed{'s' * (options.seeds > 1)}"
    sampled = f"{of.steps} steps at CFG {of.cfg:g}, edits from {of.gate:g} of sampling on"
    trained += f", eta {of.eta:g} for all" if of.eta else ""
    images = f"{of.people} images a seed and end"
    model = "the pocket model" if studio.is_pocket else studio.family
    return f"Measured on {model} (weights {studio.hash}): {seeds}, {images}, {trained}, {sampled}."


def main() -> None:
    options = parsed(__doc__.splitlines()[0])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    counts = Counts(**{field.name: getattr(options, field.name) for field in fields(Counts)})
    with torch.inference_mode():  # as ComfyUI runs its nodes
        studio, texts = Studio(options, counts), []
        found = {"model": studio.hash, "seeds": options.seeds, **asdict(counts)}
        for part in options.parts:
            began = _models.now()
            section = parts_of(studio, options)[part]()
            text = f"{facts(studio, options, part)}\n\n{section.markdown}"
            log.info("\n%s\n(part %s: %.0f s)\n", text, part, _models.now() - began)
            texts.append(f"## Part {part}\n\n{text}\n")
            found[part] = section.figures
            write_picture(section, options.out)
            write_figures(found, options.out / "results.json")
            write_whole(options.out / "tables.md", "\n".join(texts))
            if options.docs:
                write_docs(section, text)
        if options.ab:
            write_whole(options.out / "ab.html", compared(studio, options.subjects))
            log.info("To choose between ours and the baselines, open %s.", options.out / "ab.html")


if __name__ == "__main__":
    main()
