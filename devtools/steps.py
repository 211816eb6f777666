"""Work in steps that survives being cut off: a step counts as done only once its stamp file stands."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .problem import Problem

GB = 10**9


@dataclass(frozen=True)
class Step:
    """`work(home, again)` does the step in the folder `home`; `again`: an earlier attempt was cut off."""

    name: str
    title: str
    needs: int  # bytes it takes while it works, downloads included
    work: Callable[[Path, bool], None]


def is_done(home: Path, step: Step) -> bool:
    return (home / "steps" / f"{step.name}.done").is_file()


def left(home: Path, steps: Sequence[Step]) -> list[Step]:
    """Return what remains: everything from the first step that is not done, since later ones build on it."""
    for index, step in enumerate(steps):
        if not is_done(home, step):
            return list(steps[index:])
    return []


def carry_out(home: Path, steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Do the steps that remain, one after the other, and tell how far it is."""
    remaining = left(home, steps)
    check_space(home, sum(step.needs for step in remaining))
    (home / "steps").mkdir(parents=True, exist_ok=True)
    for step in remaining:
        started, done = home / "steps" / f"{step.name}.started", home / "steps" / f"{step.name}.done"
        again = started.exists()
        done.unlink(missing_ok=True)
        started.touch()
        note = " (it was interrupted before)" if again else ""
        say(f"{steps.index(step) + 1}/{len(steps)} {step.title}{note}")
        before, clock = size(home), time.monotonic()
        step.work(home, again)
        write_whole(done, step.title)
        started.unlink()
        grown = max(0, size(home) - before)
        say(f"    done in {time.monotonic() - clock:.0f} s, {in_words(grown)}")


def check_space(home: Path, needed: int) -> None:
    """Complain before the work begins, not in the middle of it."""
    folder = home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(
            f"{in_words(needed)} of free disk space are needed in {folder}, and {in_words(free)} are there: "
            "make room, or set CONCEPT_SLIDERS_CACHE to a folder on a larger disk"
        )


def size(folder: Path) -> int:
    """Bytes of the files below a folder, without following links."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                total += os.path.getsize(path)
    return total


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it stands either as a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def in_words(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 10**6:.1f} MB"
