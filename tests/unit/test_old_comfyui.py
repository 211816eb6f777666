"""What the pack does in a ComfyUI that is older than it needs: one line in the log, and no nodes."""

import subprocess
import sys
from pathlib import Path

import pytest
from concept_sliders.comfy_host.comfyui_version import OLDEST, too_old

ROOT = Path(__file__).parents[2]
LOAD = """
import importlib.util, sys
root = sys.argv[1]
at = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(at)
at.loader.exec_module(pack)
print(pack.NODE_CLASS_MAPPINGS, hasattr(pack, "comfy_entrypoint"), hasattr(pack, "WEB_DIRECTORY"))
"""


@pytest.mark.parametrize(
    ("version", "refused"),
    [(OLDEST, False), ("0.24.0-rc1", False), ("0.30.0", False), ("1.0", False), ("0.23.9", True), ("0.3.75", True)],
)
def test_versions_are_compared_by_their_numbers(version, refused):
    assert bool(too_old(version)) is refused


def test_an_old_comfyui_gets_one_line_with_both_numbers_and_no_nodes(tmp_path):
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.18.2"\n')
    run = [sys.executable, "-c", LOAD, str(ROOT)]
    answer = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["{}", "False", "False"]
    assert answer.stderr.strip() == too_old("0.18.2")
    assert OLDEST in answer.stderr and "0.18.2" in answer.stderr
