"""Loads ComfyUI as a library: its options are parsed once, on import, from `sys.argv`."""

import sys

import pytest
import torch

own_arguments = sys.argv
sys.argv = ["main.py"] if torch.cuda.is_available() else ["main.py", "--cpu"]

import comfy_aimdo.control  # noqa: E402

comfy_aimdo.control.init()  # before anything else of ComfyUI's, as main.py does: paged weights need its library

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cli_args  # noqa: E402
import folder_paths  # noqa: E402

sys.argv = own_arguments

from concept_sliders.cli import train as command  # noqa: E402
from concept_sliders.pocket.models.loading import load_pocket  # noqa: E402
from concept_sliders.tests.support.inverting import EncodedImages, inverted  # noqa: E402
from concept_sliders.tests.support.tiny import traces  # noqa: E402


@pytest.fixture(scope="session")
def pocket():
    """MODEL, CLIP and VAE, loaded in inference mode as nodes load them."""
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="session")
def images(pocket):
    return EncodedImages(pocket)


@pytest.fixture(scope="session")
def inversion(pocket, images):
    """Of two drawings, by null-text."""
    return inverted(pocket[0], images)


@pytest.fixture(scope="session", autouse=True)
def output_folder(tmp_path_factory):
    """What is written goes into a folder of this run: a run that was cut off leaves nothing to the next."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    yield
    folder_paths.set_output_directory(before)


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """An empty models/loras."""
    names = dict(folder_paths.folder_names_and_paths)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", names)
    names["loras"] = ([str(tmp_path)], {".safetensors", ".pt"})
    return tmp_path


@pytest.fixture
def untouched(pocket):
    """Every weight of the pocket model is the same object with the same bits after each test."""

    def state():
        model = pocket[0].model
        return {name: (id(p), p.data_ptr(), p.is_inference()) for name, p in model.named_parameters()}

    before, bits = state(), {name: p.clone() for name, p in pocket[0].model.named_parameters()}
    yield
    assert state() == before
    assert all(torch.equal(p, bits[name]) for name, p in pocket[0].model.named_parameters())
    assert traces(pocket[0]) == []


@pytest.fixture
def train_command(monkeypatch, capsys):
    """`dev.py train` with these arguments: its exit code, and what it says on stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dev.py train", *map(str, arguments)])
        return command.main(), capsys.readouterr().err

    return run
