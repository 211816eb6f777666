"""Sets up what `dev.py test --host` and `--all` run on: another version of ComfyUI, another front end, a Manager.

Such an environment borrows the packages of the pinned ComfyUI's, so that torch lies on the disk once, and has of its
own those that differ: all of them stand in `variant_packages/`, one file a variant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from . import host, install, pins
from .host import Host
from .pip import drop_unfinished, pip
from .problem import Problem
from .pythons import ask, in_venv, last_line
from .steps import GB, Step

PACKAGES = {path.stem: path for path in sorted(Path(__file__).with_name("variant_packages").glob("*.txt"))}
FRONT_ENDS = tuple(name for name in PACKAGES if name.startswith("front-end-"))
MANAGERS = tuple(name for name in PACKAGES if name.startswith("manager-"))
OLDER = tuple(release.version for release in pins.RELEASES if release != pins.PINNED)


def folder(name: str) -> Path:
    """Return where a variant is kept: a change of what it is made of leads to another folder."""
    release = release_of(name)
    key = pins.key(PACKAGES[name].read_text(encoding="utf-8"), release.sdist, release.sha256, pins.current_key())
    return host.cache_folder() / f"variant-{name}-{key}"


def release_of(name: str) -> pins.Release:
    """Return the release of ComfyUI that a variant is of: that of its name, else the pinned one."""
    return next((release for release in pins.RELEASES if release.version == name), pins.PINNED)


def find(name: str, say: Callable[[str], None]) -> Host:
    """Return a variant, or the pinned ComfyUI by its version; sets up what is not there yet."""
    if name == pins.PINNED.version:
        return host.set_up(say)
    if name not in PACKAGES:
        versions = ", ".join((pins.PINNED.version, *PACKAGES))
        raise Problem(f"there is no {name} to set up; there are: {versions}")
    base, home = host.set_up(say), folder(name)
    host.set_up(say, home, functools.partial(steps, name, base), title=title_of(name))
    return Host(comfyui_of(name, base), in_venv(home / "venv"), pinned=True)


def title_of(name: str) -> str:
    version = f"ComfyUI {release_of(name).version}"
    return version if name in OLDER else f"{version} with {name}"


def comfyui_of(name: str, base: Host) -> Path:
    return folder(name) / "ComfyUI" if name in OLDER else base.comfy


def source(release: pins.Release, say: Callable[[str], None]) -> Path:
    """Return the folder of a release of ComfyUI, for reading alone: nothing that it requires is installed."""
    base = host.set_up(say)
    if release == pins.PINNED:
        return base.comfy
    target = host.cache_folder() / f"source-{release.version}-{release.sha256[:12]}"
    if not target.is_dir():
        say(f"fetching the source of ComfyUI {release.version}")
        install.fetch_comfyui(base.comfy.parent, None, release, target)
    return target


def steps(name: str, base: Host, lock: int | None = None) -> list[Step]:
    """Return the set-up of a variant, in order, on the pinned ComfyUI `base`."""

    def environment(home: Path, again: bool) -> None:
        install.make_environment(home, base.python, "--without-pip")  # it is among what is borrowed
        own, borrowed = (site_packages(python) for python in (in_venv(home / "venv"), base.python))
        (own / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")  # behind its own on sys.path

    def comfyui(home: Path, again: bool) -> None:
        if name in OLDER:
            install.fetch_comfyui(home, lock, release_of(name))

    def packages(home: Path, again: bool) -> None:
        if again:
            drop_unfinished(site_packages(in_venv(home / "venv")))
        pip(home, "install", "--no-deps", "-r", str(PACKAGES[name]), lock=lock)

    def check(home: Path, again: bool) -> None:
        install.check(home, comfyui=comfyui_of(name, base))

    return [
        Step("environment", "Python environment", GB // 10, environment),
        Step("comfyui", f"ComfyUI {release_of(name).version}", GB // 10, comfyui),
        Step("packages", "what differs from the pinned ComfyUI", GB, packages),
        Step("check", "a first start", GB // 10, check),
    ]


def site_packages(python: Path) -> Path:
    """Return the folder that holds an environment's packages."""
    answer = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    if answer.returncode != 0:
        raise Problem(f"{python} does not run: {last_line(answer.stderr)}")
    return Path(answer.stdout.strip())
