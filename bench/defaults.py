"""What the training nodes' defaults reach: sliders from words and from pairs, without a setting of one's own.

    python3 dev.py bench defaults [--words age smile ...] [--pairs hat ...] [--people 16] [--turbo]

Six concepts by words and three by drawn pairs are trained on the model that *Load Pocket Model* gives, by the nodes
at their defaults; the prompts are given. `--turbo` does it on pocket turbo, in four steps without guidance. Each
slider acts at -1, 0 and +1 on the same people, whom no training has seen, and opposing prompts make the same people
without it. The probe reads all images. Said of every slider:

    apart    how far the attribute moves between the two opposing prompts
    reach    how far it moves from 0 to -1, and from 0 to +1, as a share of that; "span" is their sum
    beside   how far everything else moves in an image, from 0 to -1 and to +1: the mean over the attributes, and the
             one that moves most. Those that the slider is told to preserve stand apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _models
import torch
from _people import FEW_STEPS, MEASURED, ORDINARY, read
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.nodes.concepts import SliderConceptNode
from concept_sliders.nodes.pocket import LoadPocketModel, draw
from concept_sliders.nodes.training import TrainSlider, TrainVisualSlider
from concept_sliders.pocket.world.shirt_pairs import as_images
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.models.loading import with_turbo
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.pairs.image_sets import ImagePairs, pairs_from_batches, prepare
from torch import Tensor

log = logging.getLogger("bench")
PERSON = "portrait of a person"
STRENGTHS = (-1.0, 0.0, 1.0)
PAIRS, PAIRS_SEED = 6, 11


@dataclass(frozen=True)
class Words:
    """A concept by words. preserve: phrases to preserve, and `kept` the attributes that they name."""

    attribute: str
    less: str
    more: str
    preserve: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def _of_a_person(attribute: str, less: str, more: str, *preserve: str, kept: tuple[str, ...] = ()) -> Words:
    return Words(attribute, f"{PERSON}, {less}", f"{PERSON}, {more}", preserve, kept)


BY_WORDS = {
    "age": Words(
        "age",
        "portrait of a very young person",
        "portrait of a very old person",
        ("with glasses", "without glasses"),
        ("glasses",),
    ),
    "smile": Words("smile", "portrait of a frowning person", "portrait of a laughing person"),
    "eyes": _of_a_person("eye_size", "tiny eyes", "huge eyes"),
    "hair": _of_a_person("hair_length", "very short hair", "very long hair"),
    "skin": _of_a_person("skin_tone", "very dark skin", "pale skin"),
    "sky": _of_a_person("sky", "night sky", "noon sky"),
}


@dataclass(frozen=True)
class Drawn:
    """A concept by drawn pairs: an attribute at its two ends, and prompts for the same two ends to compare with."""

    attribute: str
    less: Any
    more: Any
    prompts: tuple[str, str]
    kept: tuple[str, ...] = ()


BY_PAIRS = {
    "hat": Drawn("hat", False, True, (f"{PERSON}, without a hat", f"{PERSON}, with a hat")),
    "smile": Drawn("smile", 0.1, 0.9, ("portrait of a frowning person", "portrait of a laughing person")),
    "hair": Drawn("hair_length", 0.1, 0.9, (f"{PERSON}, very short hair", f"{PERSON}, very long hair")),
}


@dataclass(frozen=True)
class Result:
    """reach, beside, worst: at -1 and at +1. kept: how far each preserved attribute moves, at both."""

    seconds: float
    recipe: dict[str, Any]
    apart: float
    reach: tuple[float, float]
    beside: tuple[float, float]
    worst: tuple[tuple[str, float], tuple[str, float]]
    kept: dict[str, tuple[float, float]]

    @property
    def span(self) -> float:
        return sum(self.reach)


def defaults(node: Any) -> dict[str, Any]:
    """Return the default of every widget of a node."""
    inputs = node.define_schema().inputs
    return {each.id: each.default for each in inputs if getattr(each, "default", None) is not None}


class Studio:
    """The pocket model with the nodes that train on it, and the probe."""

    def __init__(self, people: int, turbo: bool):
        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = LoadPocketModel.execute().args
            side = as_images([draw(portraits(1, seed=0)[0])])
            self.latent = torch.zeros_like(self.vae.encode(side))
        self.settings = FEW_STEPS if turbo else ORDINARY
        if turbo:
            self.model = with_turbo(self.model)
        self.probe, self.people = load_probe(), people

    def by_words(self, of: Words, name: str) -> Stack:
        said = {"target": PERSON, "more": of.more, "less": of.less, "preserve": "\n".join(of.preserve)}
        (concept,) = SliderConceptNode.execute(**{**defaults(SliderConceptNode), **said}).args
        latent = {"samples": self.latent}
        return self._trained(TrainSlider, name, clip=self.clip, concept=concept, latent=latent)

    def by_pairs(self, of: Drawn, name: str) -> Stack:
        people = [person.with_(spoiled=False) for person in portraits(PAIRS, seed=PAIRS_SEED)]
        ends = (of.less, of.more)
        less, more = (as_images([draw(p.with_(**{of.attribute: end})) for p in people]) for end in ends)
        pairs = ImagePairs(
            tuple(prepare(pair, less.shape[1]) for pair in pairs_from_batches(less, more, None, PERSON))
        )
        return self._trained(TrainVisualSlider, name, clip=self.clip, vae=self.vae, pairs=pairs)

    def _trained(self, node: Any, name: str, **given: Any) -> Stack:
        settings = {**defaults(node), **given, "name": name, "checkpoint_every": 0}
        return node.execute(model=self.model, **settings).args[0]

    def read(self, model: Any, prompt: str, columns: int = 1) -> Tensor:
        """(people, columns, attributes): the same people in every column."""
        shown = model, self.clip, self.vae, self.probe
        return read(*shown, prompt, self.latent, self.people, columns, self.settings)

    def result(self, stack: Stack, attribute: str, prompts: tuple[str, str], kept: tuple[str, ...]) -> dict[str, Any]:
        """Return what the slider reaches, and what it moves beside."""
        own = MEASURED.index(attribute)
        swept = apply_sliders(self.model, stack.swept(0, STRENGTHS, self.people))
        readings = self.read(swept, PERSON, len(STRENGTHS))
        low, high = (self.read(self.model, prompt)[:, 0, own].mean() for prompt in prompts)
        less, usual, more = readings.mean(0)[:, own]
        moved = (readings[:, [0, 2]] - readings[:, [1]]).abs().mean(0)  # (2, attributes)
        others = [i for i, name in enumerate(MEASURED) if name not in (attribute, *kept)]
        worst = [max((float(end[i]), MEASURED[i]) for i in others) for end in moved]
        return {
            "apart": float(high - low),
            "reach": (float((usual - less) / (high - low)), float((more - usual) / (high - low))),
            "beside": tuple(moved[:, others].mean(1).tolist()),
            "worst": tuple((name, value) for value, name in worst),
            "kept": {name: tuple(moved[:, MEASURED.index(name)].tolist()) for name in kept},
        }


def made(studio: Studio, kind: str, name: str, folder: Path) -> Result:
    """Return the result of one training, kept in the folder beside its slider: it is not trained twice."""
    file, trained = (folder / f"{kind}_{name}{ending}" for ending in (".json", ".safetensors"))
    of: Words | Drawn = BY_WORDS[name] if kind == "words" else BY_PAIRS[name]
    if not trained.exists():
        began = _models.now()
        with torch.inference_mode():  # as ComfyUI runs its nodes
            stack = studio.by_words(of, name) if isinstance(of, Words) else studio.by_pairs(of, name)
        save_slider(stack[0].slider, trained)
        file.write_text(json.dumps({"seconds": _models.now() - began}))
    kept = json.loads(file.read_text())
    slider = load_slider(trained)
    if kept.get("people") != studio.people:
        prompts = of.prompts if isinstance(of, Drawn) else (of.less, of.more)
        kept |= {"people": studio.people, **studio.result(Stack.of(slider), of.attribute, prompts, of.kept)}
        file.write_text(json.dumps(kept, indent=1))
    figures = {key: value for key, value in kept.items() if key != "people"}
    return Result(recipe=dict(slider.info.recipe), **figures)


def row(kind: str, name: str, found: Result) -> str:
    """Return a line of the table."""
    kept = ", ".join(f"{key} {low:.2f} {high:.2f}" for key, (low, high) in found.kept.items())
    (first, low), (second, high) = found.worst
    etas = ", ".join(f"{eta:g}" for eta in found.recipe.get("etas", ())) or "-"
    cells = [
        f"{name}, by {kind}",
        etas,
        *(f"{value:.2f}" for value in (found.apart, *found.reach, found.span)),
        *(f"{value:.3f}" for value in found.beside),
        f"{first} {low:.2f}, {second} {high:.2f}",
        kept or "-",
        f"{found.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| slider | eta | apart | reach at -1 | at +1 | span | beside at -1 | at +1 | most | preserved | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", nargs="*", choices=BY_WORDS, default=list(BY_WORDS), help="concepts by words")
    parser.add_argument("--pairs", nargs="*", choices=BY_PAIRS, default=list(BY_PAIRS), help="concepts by pairs")
    parser.add_argument("--people", type=int, default=16, help="to measure on")
    parser.add_argument("--turbo", action="store_true", help="on the few-step model")
    parser.add_argument(
        "--out", type=Path, help="folder of sliders and figures (default: output/defaults, or -turbo)"
    )
    options = parser.parse_args()
    options.out = options.out or Path("output/defaults-turbo" if options.turbo else "output/defaults")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    studio, lines = Studio(options.people, options.turbo), [HEAD]
    for kind, names in (("words", options.words), ("pairs", options.pairs)):
        for name in names:
            began = time.monotonic()
            found = made(studio, kind, name, options.out)
            lines.append(row(kind, name, found))
            log.info("%s  (%.0f s)", lines[-1], time.monotonic() - began)
            (options.out / f"{kind}_{name}_result.json").write_text(json.dumps(asdict(found), indent=1))
    (options.out / "defaults.md").write_text("\n".join(lines) + "\n")
    log.info("\n%s", "\n".join(lines))


if __name__ == "__main__":
    main()
