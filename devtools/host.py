"""Finds the ComfyUI that everything here runs on: the one COMFYUI_PATH names, or a pinned one set up once."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import install, lock, pins
from .problem import Problem
from .pythons import ask, clean_environment, in_venv, last_line
from .steps import Step, carry_out, in_words, left

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("main.py", "nodes.py", "execution.py", "comfy")


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it. `pinned` is False for someone's own installation."""

    comfy: Path
    python: Path
    pinned: bool

    def environment(self) -> dict[str, str]:
        """Return what a child process gets, so that it finds the same ComfyUI."""
        return clean_environment(COMFYUI_PATH=str(self.comfy), COMFYUI_PYTHON=str(self.python))

    def missing(self, modules: Sequence[str]) -> list[str]:
        """Return those of the modules that ComfyUI's Python does not find."""
        question = "import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if not u.find_spec(m)))"
        answer = ask(self.python, question, *modules)
        if answer.returncode != 0:
            raise Problem(f"{self.python} does not run: {last_line(answer.stderr)}")
        return answer.stdout.split()

    def version(self) -> str:
        file = self.comfy / "comfyui_version.py"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
        return found.group(1) if found else "unknown"

    def check_version(self) -> None:
        """Raise Problem if the pack does not run on this version."""
        if numbers(self.version()) < numbers(oldest()):
            raise Problem(
                f"the pack needs ComfyUI {oldest()} or later, and the one in {self.comfy} is {self.version()}: "
                "update it, or unset COMFYUI_PATH to use a pinned ComfyUI"
            )


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def oldest() -> str:
    """Return the oldest version of ComfyUI that the pack runs on, as its manifest tells the registry."""
    manifest = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^requires-comfyui = ">=([\d.]+)"$', manifest, re.MULTILINE)[0]


def cache_folder(environment: dict[str, str] | None = None) -> Path:
    """Return where pinned installations are kept: CONCEPT_SLIDERS_CACHE, else the system's per-user cache folder."""
    env = dict(os.environ) if environment is None else environment
    if chosen := env.get("CONCEPT_SLIDERS_CACHE"):
        return Path(chosen).expanduser().absolute()
    if os.name == "nt":
        base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "concept-sliders"


def pinned_folder() -> Path:
    return cache_folder() / f"host-{pins.current_key()}"


def is_ready(home: Path, steps: Sequence[Step]) -> bool:
    """Returns True if every step is done and the environment's Python still stands (its base may be gone)."""
    return home.is_dir() and not left(home, steps) and in_venv(home / "venv").exists()


def find(say: Callable[[str], None] = print) -> Host:
    """Return the ComfyUI to use. Sets up the pinned one when it is not there yet."""
    return own() or set_up(say)


def ready() -> Host | None:
    """Return the ComfyUI that is there already, or None; sets nothing up."""
    home = pinned_folder()
    return own() or (pinned(home) if is_ready(home, install.steps()) else None)


def pinned(home: Path) -> Host:
    return Host(home / "ComfyUI", in_venv(home / "venv"), pinned=True)


def set_up(
    say: Callable[[str], None] = print,
    home: Path | None = None,
    make_steps: Callable[[int | None], list[Step]] = install.steps,
    title: str = f"ComfyUI {pins.PINNED.version}",
) -> Host:
    """Set up the pinned ComfyUI, or finish a set-up that was cut off; returns at once if all is there.

    home, make_steps, title: of something else that is set up in the same way.
    """
    home = home or pinned_folder()
    if is_ready(home, make_steps(None)):
        return pinned(home)
    try:
        with lock.held(
            home.with_name(home.name + ".lock"),
            lambda holder: say(f"another set-up is at work (process {holder}); waiting for it"),
        ) as descriptor:
            steps = make_steps(descriptor)
            if is_ready(home, steps):
                return pinned(home)
            if home.is_dir() and not left(home, steps):
                # Every step is marked as done, but the environment's Python is gone: begin again with that step.
                (home / "steps" / f"{steps[0].name}.done").unlink()
            say(f"setting up {title} in {home} (once; {total(left(home, steps))} to go)")
            carry_out(home, steps, say)
    except OSError as error:
        raise Problem(
            f"cannot set up in {home}: {error.strerror or error}; "
            "set CONCEPT_SLIDERS_CACHE to a folder that can be written, with room for it"
        ) from error
    return pinned(home)


def total(steps: Sequence[Step]) -> str:
    return in_words(sum(step.needs for step in steps))


def own(environment: dict[str, str] | None = None) -> Host | None:
    """Return the ComfyUI that COMFYUI_PATH names, None where it names none."""
    env = dict(os.environ) if environment is None else environment
    named = env.get("COMFYUI_PATH")
    if not named:
        return None
    comfy = Path(named).expanduser().absolute()
    lacking = [part for part in PARTS if not (comfy / part).exists()]
    if lacking:
        raise Problem(
            f"COMFYUI_PATH={named} is not a ComfyUI folder (no {lacking[0]} in it): "
            "name the folder that holds main.py, or unset it to use a pinned ComfyUI"
        )
    python = own_python(comfy, env.get("COMFYUI_PYTHON"))
    home = pinned_folder()
    host = Host(comfy, python, pinned=(comfy, python) == (home / "ComfyUI", in_venv(home / "venv")))
    host.check_version()
    lacking = host.missing(["torch", "aiohttp"])
    if lacking:
        raise Problem(
            f"{python} does not run {comfy} (it has no {lacking[0]}): "
            "set COMFYUI_PYTHON to the Python that this ComfyUI is started with"
        )
    return host


def own_python(comfy: Path, named: str | None) -> Path:
    """Return the Python that belongs to someone's ComfyUI: named, in or beside it, else the one running us."""
    if named:
        python = Path(named).expanduser().absolute()
        if not python.is_file():
            raise Problem(f"COMFYUI_PYTHON={named} is not a file: name the Python that runs {comfy}")
        return python
    venvs = (folder / name for folder in (comfy, comfy.parent) for name in ("venv", ".venv"))
    portable = (folder / "python_embeded" / "python.exe" for folder in (comfy.parent, comfy))
    for python in (*map(in_venv, venvs), *portable):
        if python.is_file():
            return python
    return Path(sys.executable)


def demand_tools(host: Host, tools: dict[str, str]) -> None:
    """Raise Problem if ComfyUI's Python lacks a tool: nothing is installed into someone's own ComfyUI.

    tools: modules and the packages that they come with.
    """
    missing = [tools[module] for module in host.missing(list(tools))]
    if missing:
        wanted = " ".join(pins.with_versions(tuple(missing)))
        raise Problem(f"{host.python} has no {', '.join(missing)}: {host.python} -m pip install {wanted}")


@functools.lru_cache(maxsize=4)
def contents(host: Host) -> dict[str, str]:
    """Return versions and device, as ComfyUI's own Python sees them now. Takes seconds: it imports torch."""
    return install.probe(host.python)


def has_accelerator(host: Host) -> bool:
    """Returns True if ComfyUI's torch finds a device; without one ComfyUI has to be started with `--cpu`."""
    return contents(host)["device"] != "cpu"


def describe(host: Host) -> list[str]:
    """Return the lines of `dev.py host`."""
    kind = "pinned, set up by dev.py" if host.pinned else "named by COMFYUI_PATH"
    rows = {"ComfyUI": f"{host.version()} ({kind})", "folder": str(host.comfy), "run by": str(host.python)}
    rows.update((name, value or "not there") for name, value in contents(host).items())
    if host.pinned:
        mine = host.comfy.parent
        others = sorted(p.name for p in mine.parent.glob("host-*") if p.is_dir() and p.name != mine.name)
        if others:
            rows["older set-ups"] = f"{', '.join(others)} in {mine.parent} (may be deleted)"
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]
