"""Which versions of ComfyUI the pack runs on. It imports nothing of ComfyUI, so that an old one can be told of it."""

from __future__ import annotations

import re

OLDEST = "0.24.0"


def too_old(version: str) -> str | None:
    """Return one sentence with both numbers if `version`, such as "0.18.2", is older than the pack runs on."""
    if _numbers(version) >= _numbers(OLDEST):
        return None
    return f"Concept Sliders needs ComfyUI {OLDEST} or later, and this is ComfyUI {version}: please update ComfyUI."


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"^[\d.]*", version)[0].split(".") if number]
