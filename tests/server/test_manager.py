"""The pack in a ComfyUI that runs ComfyUI-Manager: one of those that `dev.py test --all` sets up."""

import importlib.metadata
import urllib.request

import pytest
from concept_sliders.devtools.server import PACK

pytest.importorskip("comfyui_manager", reason="ComfyUI-Manager is not installed: dev.py test --all has it")


def test_the_manager_runs_beside_the_pack(server):
    with urllib.request.urlopen(f"{server.url}/v2/manager/version", timeout=30) as answer:
        assert importlib.metadata.version("comfyui-manager") in answer.read().decode()
    assert "ConceptSlidersApplySliders" in server.object_info()


@pytest.mark.parametrize("mode", ["default", "imported"])
def test_the_manager_lists_the_pack_as_installed_and_enabled(server, mode):
    packs = server.ask(f"/v2/customnode/installed?mode={mode}")
    ours = [told for name, told in packs.items() if PACK.lower() in name.lower()]
    assert len(ours) == 1 and ours[0]["enabled"], packs
