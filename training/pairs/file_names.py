"""Reads the scene and the strength from the names of files and folders.

A name is a scene and a mark of strength: `seed0042_+2`, `0001_edit_-1.5`, `anna_less`. The mark stands last, after
`_`, a blank or `=` (after `-` too where it is a word), or is the whole name. All names of a folder must be of one
kind, the first that fits all of them:

1. marks given by the user, such as "smallsize=-1, bigsize=1";
2. words: both of one of the pairs in `WORDS`, at -1 and +1;
3. numbers of which one at least has a sign or a decimal point: they are the strengths, and the scene's name alone
   is the image at 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite

Reading = dict[str, tuple[str, float]]  # name -> (scene, strength)

WORDS = (
    ("less", "more"),
    ("before", "after"),
    ("a", "b"),
    ("neg", "pos"),
    ("negative", "positive"),
    ("low", "high"),
    ("without", "with"),
    ("minus", "plus"),
    ("off", "on"),
    ("original", "edited"),
)
UNDERSTOOD = (
    f"Understood are numbers with a sign or a point (-1, +2, 0.5) and the words "
    f"{', '.join('/'.join(pair) for pair in WORDS)}; a mark stands last, as in NAME_-1. For other names say their "
    f"strengths, such as 'smallsize=-1, bigsize=1'."
)

_NUMBER = re.compile(r"(?:(?P<scene>.*?)[_ =])??(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))", re.DOTALL)
_WORD = re.compile(r"(?:(?P<scene>.*)[_ =-])?(?P<word>[^_ =-]+)", re.DOTALL)


def parse_marks(text: str) -> dict[str, float]:
    """Parse what the user says: "smallsize=-1, bigsize=1" -> {"smallsize": -1.0, "bigsize": 1.0}; "" -> {}.

    Raises ValueError, quoting the text, for anything else, for a name or a strength that is there twice, or for
    fewer than two.
    """
    marks: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        try:
            strength = float(number)
        except ValueError:
            strength = float("nan")
        if not name or not isfinite(strength):
            raise ValueError(f"Strengths of names look like 'smallsize=-1, bigsize=1'; got {part!r} in {text!r}.")
        if name.lower() in marks or strength in marks.values():
            raise ValueError(f"Strengths of names: {part!r} repeats a name or a strength, in {text!r}.")
        marks[name.lower()] = strength
    if len(marks) == 1:
        raise ValueError(f"Strengths of names: {text!r} names one end only; a pair has two.")
    return marks


def read_names(names: Sequence[str], marks: Mapping[str, float]) -> Reading | None:
    """Return the scene and the strength of every name of a folder, or None if no rule fits all names.

    marks: what the user says, by names in lower case; where there are any no other rule is tried.
    """
    if not names:
        return None
    return _by_marks(names, marks) if marks else by_words(names) or by_numbers(names, signed=True)


def read_folders(names: Sequence[str], marks: Mapping[str, float]) -> dict[str, float] | None:
    """Return the strength of every folder, or None if their names are no strengths.

    By the same rules, but numbers need no sign and may have no leading zeros: those number samples. What stands
    before the marks must be the same in all names.
    """
    reading = _by_marks(names, marks) if marks else by_words(names) or by_numbers(names, signed=False)
    if reading is None or len({scene for scene, _ in reading.values()}) > 1:
        return None
    return {name: strength for name, (_, strength) in reading.items()}


def by_words(names: Sequence[str]) -> Reading | None:
    """Read names by rule 2, or return None if it does not fit all of them."""
    split = {name: _split_word(name) for name in names}
    ends = {word for _, word in split.values()}
    for less, more in WORDS:
        if ends == {less, more}:
            return {name: (scene, -1.0 if word == less else 1.0) for name, (scene, word) in split.items()}
    return None


def by_numbers(names: Sequence[str], signed: bool) -> Reading | None:
    """Read names by rule 3, or return None if it does not fit all of them.

    signed: at least one number must have a sign or a decimal point. Otherwise none may have a leading zero.
    """
    found = {name: _NUMBER.fullmatch(name) for name in names}
    scenes = {_tidy(match["scene"]) for match in found.values() if match and match["scene"]}
    reading: Reading = {name: (name, 0.0) for name in names if name in scenes}
    marked = {name: match for name, match in found.items() if match and name not in scenes}
    if len(marked) + len(reading) < len(found):  # a name without a number
        return None
    numbers = [match["number"] for match in marked.values()]
    if signed and not any(re.search(r"[+.-]", number) for number in numbers):
        return None
    if not signed and any(re.match(r"0\d", number) for number in numbers):
        return None
    return reading | {name: (_tidy(match["scene"]), float(match["number"])) for name, match in marked.items()}


def _by_marks(names: Sequence[str], marks: Mapping[str, float]) -> Reading | None:
    """Read names by rule 1: of several marks that fit, the longest, as a mark may contain separators."""
    reading: Reading = {}
    for name in names:
        low = name.lower()
        fitting = [mark for mark in marks if low == mark or re.search(rf"[_ =-]{re.escape(mark)}$", low)]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        reading[name] = (_tidy(name[: len(name) - len(longest)]), marks[longest])
    return reading


def _split_word(name: str) -> tuple[str, str]:
    """Return (scene, last word in lower case)."""
    match = _WORD.fullmatch(name)
    return (_tidy(match["scene"]), match["word"].lower()) if match else (name, "")


def _tidy(scene: str | None) -> str:
    return (scene or "").rstrip("_ =-")
