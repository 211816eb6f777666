"""Draws which room of the pack imports which, from the imports themselves: `docs/architecture.svg`.

    python3 -m devtools.architecture      writes the drawing anew

A room stands above all that it imports. An arrow whose end other arrows lead to as well is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from .steps import write_whole

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ROOT / "docs" / "architecture.svg"
PACK = "concept_sliders"
COMFYUI = (
    *("comfy", "comfy_api", "comfy_extras", "comfyui_version", "comfy_kitchen", "comfy_aimdo"),
    *("folder_paths", "latent_preview", "nodes", "server"),
)
ROOMS = {  # room: its column, and what stands in its box
    "nodes": (0, "the graph's face:", "schemas, thin executes, reports"),
    "cli": (2, "dev.py train and demo,", "in ComfyUI's Python"),
    "pocket": (1, "the embedded model,", "its world and its probe"),
    "devtools": (2, "set-up, server, checks;", "standard library only"),
    "inversion": (0, "DDIM, null-text,", "files of inversions"),
    "discovery": (1, "SliderSpace: directions", "that nobody named"),
    "evaluation": (2, "scores, sweeps over strengths,", "tables and plots"),
    "training": (1, "concepts, recipes, loop, resume;", "pairs/: image pairs"),
    "comfy_host": (1, "all knowledge of ComfyUI:", "applying, evaluating, memory"),
    "sliders": (1, "what a slider is; formats/: files;", "equation/: y = f(x) + B (s * A x)"),
}
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 240, 74, 36, 46, 20


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Return the modules that a source text imports, dotted; those of the pack begin with `concept_sliders`.

    package: the folders that the text stands in, from the root of the pack, such as ("sliders", "formats").
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (PACK, *package)[: len(package) + 2 - node.level] if node.level else ()
            base = (*above, *([node.module] if node.module else []))
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def imports_of(room: str, root: Path = ROOT) -> set[str]:
    """Return all that the modules of a room import, dotted."""
    found = set()
    for path in (root / room).rglob("*.py"):
        found |= imported(path.read_text(encoding="utf-8"), path.relative_to(root).parent.parts)
    return found


def arrows(rooms: Iterable[str], root: Path = ROOT) -> dict[str, set[str]]:
    """Return, for each room, the other rooms that it imports."""
    names = set(rooms)
    return {
        room: {module.split(".")[1] for module in imports_of(room, root) if module.startswith(f"{PACK}.")}
        & (names - {room})
        for room in names
    }


def levels(below: Mapping[str, set[str]]) -> dict[str, int]:
    """Return how high each room stands: above all it imports; one that imports none, just below its users.

    Raises ValueError for a circle.
    """
    done: dict[str, int] = {}
    while len(done) < len(below):
        ready = [room for room in below if room not in done and below[room] <= done.keys()]
        if not ready:
            raise ValueError(f"These rooms import each other: {', '.join(sorted(below.keys() - done.keys()))}.")
        done |= {room: 1 + max((done[other] for other in below[room]), default=-1) for room in ready}
    users = {room: [done[other] for other in below if room in below[other]] for room in below}
    return {room: done[room] if below[room] or not users[room] else min(users[room]) - 1 for room in below}


def reached(room: str, below: Mapping[str, set[str]]) -> set[str]:
    """Return the rooms that the rooms which `room` imports import, directly or not."""
    return {far for other in below[room] for far in below[other] | reached(other, below)}


def drawing(root: Path = ROOT) -> str:
    """Return the drawing as SVG."""
    below = arrows(ROOMS, root)
    height = levels(below)
    top = max(height.values())
    corner = {
        room: (MARGIN + ROOMS[room][0] * (WIDTH + ACROSS), MARGIN + (top - height[room]) * (HEIGHT + DOWN))
        for room in ROOMS
    }
    lines = [_arrow(corner[a], corner[b]) for a in ROOMS for b in ROOMS if b in below[a] - reached(a, below)]
    boxes = [_box(room, *corner[room], imports_of(room, root)) for room in ROOMS]
    width = max(x for x, _ in corner.values()) + WIDTH + MARGIN
    tall = max(y for _, y in corner.values()) + HEIGHT + MARGIN + 30
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" height="{tall}" '
            'font-family="sans-serif" font-size="13">',
            '<defs><marker id="end" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L10 5L0 10z" fill="#456"/></marker></defs>',
            f'<rect width="{width}" height="{tall}" fill="#fff"/>',
            *lines,
            *boxes,
            f'<text x="{MARGIN}" y="{tall - 16}" fill="#456">A room imports what its arrows lead to, directly or by '
            "others. Blue rooms import ComfyUI, the others do not.</text>",
            "</svg>\n",
        )
    )


def _box(room: str, x: int, y: int, imports: set[str]) -> str:
    fill = "#dcebfa" if any(module.split(".")[0] in COMFYUI for module in imports) else "#f2f1ec"
    middle = x + WIDTH // 2
    texts = "".join(
        f'<text x="{middle}" y="{y + 42 + 18 * n}" text-anchor="middle">{escape(text)}</text>'
        for n, text in enumerate(ROOMS[room][1:])
    )
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" stroke="#456"/>'
        f'<text x="{middle}" y="{y + 22}" text-anchor="middle" font-weight="bold">{room}/</text>{texts}'
    )


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    lean = (end[0] > start[0]) - (end[0] < start[0])
    x, y = start[0] + WIDTH // 2 + 30 * lean, start[1] + HEIGHT
    u, v = end[0] + WIDTH // 2 - 70 * lean, end[1]
    bend = (v - y) // 2
    return (
        f'<path d="M{x} {y}C{x} {y + bend} {u} {v - bend} {u} {v}" fill="none" stroke="#456" stroke-width="1.6" '
        'marker-end="url(#end)"/>'
    )


if __name__ == "__main__":
    write_whole(DRAWING, drawing())
