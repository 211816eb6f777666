"""Pairs of drawings that differ in one number, and in one that no caption names: the colour of the shirt.

`python3 dev.py module pocket.world.shirt_pairs` draws those that come with the pack, as the edits of a GAN would be
drawn: move one unit, keep everything else, and let a visual slider learn the difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .drawing import SIZE, draw
from .portrait import Portrait, portraits
from .unnamed import Unnamed

FOLDER = Path(__file__).parents[1] / "pairs"
PROMPT = "portrait of a person, flat colour"
COUNT, SEED = 6, 30
BLUE, RED = 0.62, 0.02  # hues
SHIRT = (slice(114, SIZE), slice(40, 88))  # rows and columns that a shirt fills in every portrait


def models(count: int, seed: int) -> list[Portrait]:
    """People to dress: in flat colour, well drawn, with hair that leaves the shirt free."""
    return [
        person.with_(style="flat colour", spoiled=False, hair_length=0.7 * person.hair_length)
        for person in portraits(count, seed)
    ]


def dressed(people: Sequence[Portrait], hue: float) -> list[np.ndarray]:
    """A picture of each, (128, 128, 3) uint8, with the shirt in a hue and everything else as it was."""
    return [draw(person, replace(Unnamed.of(person.seed), shirt=hue)) for person in people]


def redness(images: Tensor) -> Tensor:
    """(B, 128, 128, 3) pictures in [0, 1] -> (B,): how much more red than blue the shirts are, in [-1, 1]."""
    shirts = images[:, SHIRT[0], SHIRT[1]]
    return (shirts[..., 0] - shirts[..., 2]).flatten(1).median(1).values


def as_images(pictures: Sequence[np.ndarray]) -> Tensor:
    """(B, 128, 128, 3) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).float() / 255


def store(folder: Path) -> None:
    """Pictures with blue shirts in `less`, the same with red ones in `more`, and the prompt beside them."""
    people = models(COUNT, SEED)
    for name, hue in (("less", BLUE), ("more", RED)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(dressed(people, hue)):
            Image.fromarray(picture).save(folder / name / f"{index}.png", optimize=True)
    for index in range(len(people)):
        (folder / "less" / f"{index}.txt").write_text(f"{PROMPT}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER / "pocket_shirt", help="pairs are stored here")
    store(parser.parse_args().folder)


if __name__ == "__main__":
    main()
