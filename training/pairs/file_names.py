"""What names of files and folders say: which scene, and how much of the attribute.

A name is a scene and a mark: `seed0042_+2`, `0001_edit_-1.5`, `anna_less`, `000_003`. The mark stands last, after
`_`, a blank or `=` (after `-` too where it is a word), or is the whole name. All names of a folder must be of one
kind, the first that fits all of them:

1. marks given by the user, such as "smallsize=-1, bigsize=1";
2. words: both of one of the pairs in `WORDS`, at -1 and +1;
3. `NAME` and `NAME_edited` or `NAME_edit`, at -1 and +1;
4. numbers of which one at least has a sign or a decimal point: they are the strengths, and the scene's name alone
   is the image at 0;
5. whole numbers counted from 0 without a gap: steps spread evenly from -1 to +1 (as InterFaceGAN numbers them).
"""

from __future__ import annotations

import re
from collections import defaultdict
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
EDITED = ("edited", "edit")
UNDERSTOOD = (
    f"Understood are numbers (-1, 1, +2, 0.5), the words {', '.join('/'.join(pair) for pair in WORDS)}, NAME with "
    f"NAME_edited, and whole numbers from 0 on as evenly spread steps; a mark stands last, as in NAME_-1. For other "
    f"names say their strengths, such as 'smallsize=-1, bigsize=1'."
)

_NUMBER = re.compile(r"(?:(?P<scene>.*?)[_ =])??(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))", re.DOTALL)
_WORD = re.compile(r"(?:(?P<scene>.*)[_ =-])?(?P<word>[^_ =-]+)", re.DOTALL)


def parse_marks(text: str) -> dict[str, float]:
    """ "smallsize=-1, bigsize=1" -> {"smallsize": -1.0, "bigsize": 1.0}; "" -> {}.

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
    """Scene and strength of every name of a folder, or None if no rule fits all names.

    marks: what the user says, by names in small letters; where there are any no other rule is tried.
    """
    if not names:
        return None
    if marks:
        return _by_marks(names, marks)
    return by_words(names) or by_edits(names) or by_numbers(names, signed=True) or by_count(names)


def read_folders(names: Sequence[str], marks: Mapping[str, float]) -> dict[str, float] | None:
    """The strength of every folder, or None if their names are no strengths.

    By rules 1, 2 and 4, where numbers need no sign but may have no leading zeros: those number samples. What
    stands before the marks must be the same in all names.
    """
    reading = _by_marks(names, marks) if marks else by_words(names) or by_numbers(names, signed=False)
    if reading is None or len({scene for scene, _ in reading.values()}) > 1:
        return None
    return {name: strength for name, (_, strength) in reading.items()}


def by_words(names: Sequence[str]) -> Reading | None:
    """Rule 2."""
    split = {name: _split_word(name) for name in names}
    ends = {word for _, word in split.values()}
    for less, more in WORDS:
        if ends == {less, more}:
            return {name: (scene, -1.0 if word == less else 1.0) for name, (scene, word) in split.items()}
    return None


def by_numbers(names: Sequence[str], signed: bool) -> Reading | None:
    """Rule 4; signed=False accepts plain numbers too, if none has a leading zero."""
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
    """Rule 1. A mark may itself hold separators, so that the longest that fits is taken."""
    reading: Reading = {}
    for name in names:
        low = name.lower()
        fitting = [mark for mark in marks if low == mark or re.search(rf"[_ =-]{re.escape(mark)}$", low)]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        reading[name] = (_tidy(name[: len(name) - len(longest)]), marks[longest])
    return reading


def by_edits(names: Sequence[str]) -> Reading | None:
    """Rule 3."""
    reading: Reading = {}
    for name in names:
        scene, word = _split_word(name)
        edited = scene and word in EDITED
        reading[name] = (scene, 1.0) if edited else (name, -1.0)
    return reading if {strength for _, strength in reading.values()} == {-1.0, 1.0} else None


def by_count(names: Sequence[str]) -> Reading | None:
    """Rule 5."""
    found = {name: match for name in names if (match := _NUMBER.fullmatch(name)) and match["number"].isdecimal()}
    if len(found) < len(set(names)):
        return None
    steps: dict[str, list[int]] = defaultdict(list)
    for match in found.values():
        steps[_tidy(match["scene"])].append(int(match["number"]))
    if not all(len(met) > 1 and sorted(met) == list(range(len(met))) for met in steps.values()):
        return None
    reading: Reading = {}
    for name, match in found.items():
        scene = _tidy(match["scene"])
        reading[name] = (scene, 2.0 * int(match["number"]) / (len(steps[scene]) - 1) - 1.0)
    return reading


def _split_word(name: str) -> tuple[str, str]:
    """(scene, last word in small letters)."""
    match = _WORD.fullmatch(name)
    return (_tidy(match["scene"]), match["word"].lower()) if match else (name, "")


def _tidy(scene: str | None) -> str:
    return (scene or "").rstrip("_ =-")
