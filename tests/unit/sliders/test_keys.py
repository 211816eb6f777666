"""Keys of slider files: looked at before any tensor, and those of no layer named."""

import json
import os
import struct

import pytest
import torch
from concept_sliders.sliders.formats.slider_files import load_slider, read_slider
from concept_sliders.tests.support.slider_files import state
from safetensors.torch import save_file

STRAYS = ("bundle_emb.age.string_to_param.*", "emb_params", "b.weight")


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_keys_of_no_layer_are_left_out_and_named(kind, tmp_path, caplog):
    """As the stock loader does with them, which says so in the log."""
    path = tmp_path / f"x.{kind}"
    tensors = {**state(), **{key: torch.ones(2) for key in STRAYS}, "c.alpha": torch.ones(())}
    save_file(tensors, path) if kind == "safetensors" else torch.save({**tensors, "epoch": 3, 4: "five"}, path)
    slider, report = read_slider(path)
    assert set(slider.layers) == {"a"} and slider.layers["a"].rank == 2
    orphans, strays = report.notes
    assert orphans == "an alpha without weights, left out: c.alpha"
    more = ("epoch", "4") if kind == "pt" else ()
    assert strays.startswith(f"{len(STRAYS) + len(more)} keys of no slider layer, left out: ")
    assert set(strays.partition(": ")[2].split(", ")) == {*STRAYS, *more}
    assert str(path) in caplog.text and "bundle_emb" in caplog.text


def test_very_many_keys_of_no_layer(tmp_path):
    save_file({**state(), **{f"k{i}": torch.ones(1) for i in range(70)}}, tmp_path / "x.safetensors")
    (note,) = read_slider(tmp_path / "x.safetensors")[1].notes
    assert note.startswith("70 keys of no slider layer, left out: k0, ") and note.endswith(" and 20 more")


@pytest.mark.skipif(os.name == "nt", reason="the file is a hole of a terabyte, which not every file system can hold")
def test_a_checkpoint_is_told_by_its_header_alone(tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    def write(size, **more):
        entry = {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}
        header = json.dumps({"model.weight": entry, **more}).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size + 8)

    size = 2**40
    write(size, **{"x.alpha": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]}})
    with pytest.raises(ValueError, match=r"no slider layers in it. Its 2 keys are of another kind"):
        load_slider(path)
    size = 2**28
    write(size, **{"x.diff_b": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]}})
    slider, report = read_slider(path)  # only what is used is read
    assert set(slider.layers) == {"x"} and "model.weight" in report.notes[0]


def test_a_checkpoint_of_old_is_told_without_reading_its_tensors(tmp_path, monkeypatch):
    seen = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kw: seen.append(kw.get("mmap")) or load(*args, **kw))
    torch.save({"state_dict": {"model.weight": torch.ones(2)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="no slider layers in it"):
        load_slider(tmp_path / "x.ckpt")
    assert seen == [True]


def test_the_other_ending_of_safetensors(tmp_path):
    for ending in ("sft", "SFT", "SafeTensors"):
        save_file(state(), tmp_path / f"x.{ending}")
        assert set(load_slider(tmp_path / f"x.{ending}").layers) == {"a"}


def test_scales_are_said_of_layers_that_have_one(tmp_path):
    tensors = {**state(), "b.diff_b": torch.ones(4), "c.w_norm": torch.ones(4), "d.lokr_w1": torch.ones(2, 2)}
    save_file({**tensors, "d.lokr_w2": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    assert read_slider(tmp_path / "x.safetensors")[1].without_alpha == 1
