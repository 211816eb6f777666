"""The rooms of the pack: who may import whom, and who may know ComfyUI."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BELOW = {  # the rooms that a room may import, beside itself
    "sliders": (),
    "comfy_host": ("sliders",),
    "training": ("comfy_host", "sliders"),
    "inversion": ("comfy_host", "sliders"),
    "nodes": ("training", "inversion", "comfy_host", "sliders", "pocket"),
    "cli": ("devtools", "training", "inversion", "comfy_host", "sliders", "pocket"),
    "devtools": (),
}
WITHOUT_COMFYUI = ("sliders", "training", "inversion")
COMFYUI = (
    *("comfy", "comfy_api", "comfy_extras", "comfyui_version", "comfy_kitchen", "comfy_aimdo"),
    *("folder_paths", "latent_preview", "nodes", "server"),
)
OURS = "concept_sliders"


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """The modules that a source text in a package of ours imports, dotted; ours begin with `concept_sliders`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (OURS, *package)[: len(package) + 2 - node.level] if node.level else ()
            base = (*above, *([node.module] if node.module else []))
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def wrong(source: str, package: tuple[str, ...]) -> set[str]:
    """What of it the room that the package is in may not import."""
    room, found = package[0], imported(source, package)
    allowed = (room, *BELOW[room])
    across = {m for m in found if m.startswith(f"{OURS}.") and m.split(".")[1] not in allowed}
    return across | {m for m in found if room in WITHOUT_COMFYUI and m.split(".")[0] in COMFYUI}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_what_is_below_it(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(ROOT)): bad
        for path in files
        if (bad := wrong(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts))
    }
    assert found == {}


def test_what_dev_py_loads_is_of_the_standard_library():
    files = [ROOT / "dev.py", *(ROOT / "devtools").glob("*.py")]
    loaded = {
        name.split(".")[0]
        for path in files
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if not isinstance(statement, ast.FunctionDef)
        for name in imported(ast.unparse(statement), ("devtools",))
    }
    assert loaded - sys.stdlib_module_names == {OURS, "devtools"}


@pytest.mark.parametrize(
    "source, package, bad",
    [
        ("import comfy.lora", ("sliders",), {"comfy.lora"}),
        ("def f():\n    from comfy.sd import CLIP", ("training", "pairs"), {"comfy.sd.CLIP"}),
        ("from ...comfy_host.apply import KEY", ("sliders", "formats"), {"concept_sliders.comfy_host.apply.KEY"}),
        ("from .. import training", ("inversion",), {"concept_sliders.training"}),
        ("from concept_sliders.nodes import NODES", ("training",), {"concept_sliders.nodes.NODES"}),
        ("from ..stack import Stack", ("sliders", "formats"), set()),
        ("import comfy.lora\nfrom ..sliders.stack import Stack\nfrom . import match", ("comfy_host",), set()),
    ],
)
def test_what_is_wrong_is_seen(source, package, bad):
    assert wrong(source, package) == bad
