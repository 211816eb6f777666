"""A page on which people choose blindly between ours and a baseline, pair by pair, and which counts what they prefer.

It is one HTML file without anything outside it, so that it opens from the disk. Sides are shuffled here, by a seeded
generator; which side is ours stands in the page scrambled, and is shown with the tally at the end.
"""

from __future__ import annotations

import base64
import html
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEMPLATE = Path(__file__).with_name("ab_page.html")
PLACE, LEFT, RIGHT = "/* the pairs */ []", "left", "right"


@dataclass(frozen=True)
class Pair:
    """Two sheets of one edit. task: what it was to do, in words. rival: what ours is compared with. original, ours,
    theirs: JPEG; ours and theirs show less and more."""

    task: str
    rival: str
    original: bytes
    ours: bytes
    theirs: bytes


def page(pairs: Sequence[Pair], seed: int = 0, title: str = "Which edit is better?") -> str:
    """Return the page, with pairs in random order and on random sides; the same for the same seed.

    Raises ValueError for no pair.
    """
    if not pairs:
        raise ValueError("A page to compare on takes at least one pair.")
    shuffle = random.Random(seed)
    shown = [_shown(pair, shuffle.choice((LEFT, RIGHT))) for pair in shuffle.sample(list(pairs), len(pairs))]
    # no "</script>" may stand within the script
    filled = TEMPLATE.read_text(encoding="utf-8").replace(PLACE, json.dumps(shown).replace("</", "<\\/"))
    return filled.replace("{{title}}", html.escape(title))


def _shown(pair: Pair, side: str) -> dict[str, str]:
    """What the page holds of a pair. side: where ours stands."""
    left, right = (pair.ours, pair.theirs) if side == LEFT else (pair.theirs, pair.ours)
    return {
        "task": pair.task,
        "original": _address(pair.original),
        LEFT: _address(left),
        RIGHT: _address(right),
        "key": scrambled(side, pair.rival),
    }


def scrambled(side: str, rival: str) -> str:
    """Hide an answer from the eye, not from who wants to know: base64 of its JSON, backwards."""
    return base64.b64encode(json.dumps({"ours": side, "rival": rival}).encode()).decode()[::-1]


def unscrambled(key: str) -> dict[str, str]:
    """Return what `scrambled` has hidden, as the page does."""
    return json.loads(base64.b64decode(key[::-1]))


def _address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
