"""The pack in a ComfyUI that runs ComfyUI-Manager: one of those that `dev.py test --all` sets up."""

import importlib.metadata
import subprocess
import urllib.request

import pytest
from concept_sliders.devtools.host import ROOT
from concept_sliders.devtools.server import PACK

pytest.importorskip("comfyui_manager", reason="ComfyUI-Manager is not installed: dev.py test --all has it")


def test_the_manager_runs_beside_the_pack(server):
    with urllib.request.urlopen(f"{server.url}/v2/manager/version", timeout=30) as answer:
        assert importlib.metadata.version("comfyui-manager") in answer.read().decode()
    assert "ConceptSlidersApplySliders" in server.object_info()


def test_the_manager_lists_the_pack_as_installed_and_enabled(server):
    """As of a pack that was cloned."""
    remote = subprocess.run(["git", "config", "remote.origin.url"], cwd=ROOT, capture_output=True, text=True).stdout
    if not remote:
        pytest.skip("this copy of the pack was not cloned")
    assert server.ask("/v2/customnode/installed")[PACK]["enabled"]
