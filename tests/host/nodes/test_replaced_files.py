"""A file that is replaced under its name is read again, whatever is kept of the one before."""

import os
import shutil

import pytest
import torch
from concept_sliders.nodes.inverting import LoadInversion
from concept_sliders.nodes.loading import LoadSlider
from concept_sliders.nodes.recipes import LoadRecipe
from concept_sliders.nodes.sets import LoadSliderSet
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import save_slider
from concept_sliders.sliders.slider import Slider

NAME = "set/a.safetensors"
READERS = {
    "Load Slider": lambda name: LoadSlider.fingerprint_inputs(name, 1.0),
    "Load Slider Set": lambda name: LoadSliderSet.fingerprint_inputs("set"),
    "Load Recipe": LoadRecipe.fingerprint_inputs,
    "Load Inversion": LoadInversion.fingerprint_inputs,
}


@pytest.fixture
def file(loras, monkeypatch):
    monkeypatch.setattr("concept_sliders.nodes.inverting.find_inversion", lambda name: loras / name)
    save_slider(Slider("a", {"x": LowRank(torch.ones(1, 4), torch.ones(4, 1))}), loras / NAME)
    return loras / NAME


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("longer", [0, 1])
def test_a_file_replaced_with_its_time_kept(reader, longer, file):
    """Of another size, or of the same one."""
    before, about = READERS[reader](NAME), file.stat()
    assert READERS[reader](NAME) == before
    other = file.with_name("other")
    other.write_bytes(bytes(about.st_size + longer))
    shutil.copystat(file, other)
    os.replace(other, file)
    assert file.stat().st_mtime_ns == about.st_mtime_ns
    assert READERS[reader](NAME) != before
