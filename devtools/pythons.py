"""Chooses the Python that makes the environment of the pinned ComfyUI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .pins import PYTHONS
from .problem import Problem

# Where dev.py itself runs on something else: the best-tried version first.
PREFERRED = ("python3.11", "python3.12", "python3.13", "python3.10", "python3", "python")
QUESTION = "import sys, venv, ensurepip; print(*sys.version_info[:2])"


def version_of(python: str) -> tuple[int, int] | None:
    """Return the version of an interpreter that can make virtual environments; None if it cannot."""
    try:
        answer = ask(python, QUESTION, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = answer.stdout.split()
    if answer.returncode != 0 or len(words) != 2:
        return None
    return int(words[0]), int(words[1])


def choose(
    own: str = sys.executable,
    names: Iterable[str] = PREFERRED,
    ask: Callable[[str], tuple[int, int] | None] = version_of,
    which: Callable[[str], str | None] = shutil.which,
) -> str:
    """Return the Python running us if it will do, else the first suitable one on PATH."""
    candidates = [own, *(found for found in map(which, names) if found)]
    for candidate in candidates:
        if ask(candidate) in PYTHONS:
            return candidate
    raise Problem(
        f"no Python from 3.10 to 3.13 with the venv module was found (this one is {sys.version.split()[0]}): "
        "install one (on Debian and Ubuntu: apt install python3-venv) and run the same command again"
    )


def ask(python: str | Path, program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a few lines in another Python, away from our own folders, which it would import from."""
    command = [str(python), "-c", program, *arguments]
    neutral = Path(__file__).resolve().anchor
    return subprocess.run(command, capture_output=True, text=True, cwd=neutral, env=clean_environment(), **options)


def last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def in_venv(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def clean_environment(**more: str) -> dict[str, str]:
    """Our environment without what would lead another Python, or its pip, to other folders than its own."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONNOUSERSITE": "1", **more}
