"""Running pip: what it says in few lines, and what went wrong in one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .problem import Problem
from .pythons import clean_environment, in_venv

WORTH_SHOWING_MB = 20
NETWORK = re.compile(
    r"name resolution|NewConnectionError|ConnectionError|ConnectTimeout|Max retries|timed out|ProxyError"
    r"|SSLError"
    r"|Connection (refused|reset|aborted|broken)|IncompleteRead|Network is unreachable|HTTP error 5\d\d"
    r"|from versions: none",
    re.IGNORECASE,
)
DISK = re.compile(r"No space left on device|Disk quota exceeded|not enough space", re.IGNORECASE)


def pip(home: Path, *arguments: str, lock: int | None = None) -> None:
    """Run the environment's pip in `home`. Everything it says goes into `home/setup.log` too."""
    python = in_venv(home / "venv")
    show = sys.stdout.isatty()
    command = [str(python), "-m", "pip", *arguments]
    if not show:
        command += ["--progress-bar", "off"]
    options: dict = {"pass_fds": (lock,)} if lock is not None and sys.platform != "win32" else {}
    environment = clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    complaints: list[str] = []
    with open(home / "setup.log", "a", encoding="utf-8") as log:
        log.write(f"\n$ pip {' '.join(arguments)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            text=True,
            errors="replace",
            stdout=None if show else subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        with process:
            reader = threading.Thread(target=_read_complaints, args=(process.stderr, complaints), daemon=True)
            reader.start()
            try:
                if process.stdout is not None:
                    _retell(process.stdout, log)
                code = process.wait()
            finally:
                if process.poll() is None:  # we are being stopped
                    process.terminate()
                    process.wait()
            reader.join()
        log.writelines(complaints)
    if code != 0:
        raise Problem(explain(complaints, home / "setup.log"))


def _retell(said: IO[str], log: IO[str]) -> None:
    """Keep all of it in the log; show the lines that tell how far it is."""
    for line in said:
        log.write(line)
        if short := progress(line):
            print(f"    {short}", flush=True)


def progress(line: str) -> str | None:
    """Return the part of a line of pip worth showing without a progress bar: large downloads, and the installing."""
    if found := re.match(r"\s*(Downloading|Using cached) (\S+) \(([\d.]+) (MB|GB)\)", line):
        verb, file, amount, unit = found.groups()
        if unit == "GB" or float(amount) >= WORTH_SHOWING_MB:
            return f"{verb.lower()} {file.rsplit('/', 1)[-1].split('-', 1)[0]}, {amount} {unit}"
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"installing {count} package{'s' if count > 1 else ''}"
    return None


def _read_complaints(said: IO[str], kept: list[str]) -> None:
    kept.extend(line for line in said if not is_noise(line))


def is_noise(line: str) -> bool:
    """Warnings about the machine's own pip settings, which say nothing about this set-up."""
    return not line.strip() or (line.startswith("WARNING: Location") and "is ignored" in line)


def explain(complaints: Sequence[str], log: Path) -> str:
    """One line for a failed pip: what it was, and what to do."""
    text = "".join(complaints)
    go_on = "then run the same command again; it goes on where it stopped"
    if DISK.search(text):
        return f"the disk is full: make room, or name a larger one in CONCEPT_SLIDERS_CACHE, {go_on}"
    if NETWORK.search(text):
        return f"the package index could not be reached: check the network or pip's proxy settings, {go_on}"
    errors = [line.strip() for line in complaints if line.lower().lstrip().startswith("error")]
    last = (errors or [line.strip() for line in complaints] or ["it said nothing"])[-1]
    return f"pip failed: {last[:300]} (all of it: {log})"


def drop_unfinished(site_packages: Path) -> list[str]:
    """Make pip install again what it was installing when it was cut off.

    pip writes a package's RECORD last; a `.dist-info` without one belongs to a package that is not whole,
    but which pip would take for installed.
    """
    dropped = []
    for info in site_packages.glob("*.dist-info"):
        if not (info / "RECORD").is_file():
            shutil.rmtree(info)
            dropped.append(info.name)
    return dropped
