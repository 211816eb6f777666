"""The rooms of the pack: who may import whom, and who may know ComfyUI."""

import sys
from pathlib import Path

import pytest
from concept_sliders.devtools.architecture import COMFYUI, imported

ROOT = Path(__file__).parents[2]
BELOW = {  # the rooms that a room may import, beside itself
    "sliders": (),
    "comfy_host": ("sliders",),
    "training": ("comfy_host", "sliders"),
    "inversion": ("comfy_host", "sliders"),
    "evaluation": ("comfy_host", "sliders"),
    "discovery": ("training", "evaluation", "comfy_host", "sliders"),
    "nodes": ("training", "inversion", "evaluation", "discovery", "comfy_host", "sliders", "pocket"),
    "cli": ("devtools", "training", "inversion", "comfy_host", "sliders", "pocket"),
    "devtools": (),
}
WITHOUT_COMFYUI = ("sliders", "training", "inversion", "evaluation", "discovery", "devtools")
OURS = "concept_sliders"


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
    found = {name for path in files for name in imported(path.read_text(encoding="utf-8"), ("devtools",))}
    assert {name.split(".")[0] for name in found} - sys.stdlib_module_names == {OURS, "devtools"}


def test_the_archive_has_all_that_nodes_need():
    left_out = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    needed = ("nodes", *BELOW["nodes"], "web", "recipes", "example_workflows")
    assert [name for name in needed if f"/{name}/" in left_out] == []
    assert all((ROOT / path.strip("/")).exists() for path in left_out if path.startswith("/"))


@pytest.mark.parametrize(
    ("source", "package", "bad"),
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
