"""What `bench tables` is told on its command line, checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _tables_subjects import ABLATED, COMPOSED, THIRTY, TWELVE, Subject
from concept_sliders.cli.model_files import add_options
from concept_sliders.devtools.host import ROOT, cache_folder

PARTS = ("a", "b", "c", "d", "e")
PAGE = ROOT / "docs" / "results.md"


def parsed(description: str, given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with what follows from them: parts, subjects, and the concept of the ablation."""
    parser = argparse.ArgumentParser(prog="dev.py bench tables", description=description)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="some of the parts; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of every cell")
    parser.add_argument("--people", type=int, default=16, help="images a measurement")
    parser.add_argument("--iterations", type=int, default=400, help="of training by words")
    parser.add_argument("--visual-iterations", type=int, default=300, help="of training by pairs")
    parser.add_argument("--batch", type=int, help="of training by words; default 4, on a real model 1")
    parser.add_argument("--at-once", type=int, help="images sampled in one batch; default 16, on a real model 1")
    parser.add_argument("--eta", type=float, default=0.0, help="of every concept; default: chosen as by training")
    parser.add_argument("--concepts", nargs="+", metavar="NAME", help="of part a and d; default: all")
    parser.add_argument("--composed", type=int, nargs="+", default=COMPOSED, help="numbers of sliders in part d")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--cfg", type=float, help="of sampling; default 3, on a real model 7")
    parser.add_argument("--gate", type=float, default=0.1, help="the part of sampling from which every edit acts")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "tables", help="outside the repository")
    parser.add_argument("--out", type=Path, default=Path("output/tables"), help="tables, pictures, figures, the page")
    parser.add_argument("--ab", action="store_true", help="make the page to choose on, of part a's images")
    parser.add_argument(
        "--docs", action="store_true", help=f"write tables and pictures into {PAGE.relative_to(ROOT)}"
    )
    add_options(parser)
    parser.add_argument("--clip-vision", type=Path, help="the vision encoder of a real model's delta CLIP")
    parser.add_argument(
        "--lpips", type=Path, help="torchvision's AlexNet or VGG16; without it, the encoder's distance"
    )
    parser.add_argument("--size", type=int, help="side of images in pixels; default 512 on a real model")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], help="folders of pairs for part b, real models")
    parser.add_argument("--pairs-prompt", default="", help="of pairs without a caption")
    parser.add_argument("--photos", type=Path, help="good images for part e, real models")
    return _checked(parser, parser.parse_args(given))


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the model, and refuse what cannot be run."""
    real = bool(options.checkpoint or options.unet)
    options.batch = options.batch or (1 if real else 4)
    options.at_once = options.at_once or (1 if real else 16)
    options.cfg = options.cfg or (7.0 if real else 3.0)
    if min(options.seeds, options.iterations, options.visual_iterations, options.batch, options.at_once) < 1:
        parser.error("--seeds, --iterations, --visual-iterations, --batch and --at-once take 1 or more")
    if options.people < 2:
        parser.error(f"--people takes 2 or more; got {options.people}")
    if min(options.composed) < 2:
        parser.error(f"--composed takes 2 or more; got {min(options.composed)}")
    if options.eta < 0:
        parser.error(f"--eta is above 0, or 0 for automatic; got {options.eta:g}")
    if not 0 <= options.gate < 1:
        parser.error(f"--gate lies in [0, 1); got {options.gate:g}")
    if real and not options.clip_vision:
        parser.error("a real model takes --clip-vision FILE, the encoder that belongs with its text encoder")
    if options.docs and real:
        parser.error("docs/results.md is of the pocket model: run --docs without a checkpoint")
    if ROOT in (options.cache.resolve(), *options.cache.resolve().parents):
        parser.error(f"--cache lies in the repository: {options.cache}")
    left_out = [part for part, missing in (("b", not options.pairs), ("e", not options.photos)) if real and missing]
    if unable := [part for part in left_out if part in options.only]:
        parser.error(f"part {unable[0]} of a real model takes {'--pairs' if unable[0] == 'b' else '--photos'} FOLDER")
    options.parts = options.only or [part for part in PARTS if part not in left_out]
    options.subjects = _subjects(parser, options.concepts, THIRTY if real else TWELVE)
    options.ablated = THIRTY[0] if real else ABLATED
    return options


def _subjects(parser: argparse.ArgumentParser, names: list[str] | None, all_: tuple[Subject, ...]) -> list[Subject]:
    by_name = {subject.name: subject for subject in all_}
    if unknown := [name for name in names or () if name not in by_name]:
        parser.error(f"there is no concept {unknown[0]!r}; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]
