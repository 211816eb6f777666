"""Names given twice in a file: readers differ about which entry is meant, so the file is refused, and quickly."""

import io
import json
import pickle
import struct
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from concept_sliders.sliders.formats.duplicate_names import repeated_in_header, repeated_in_pickle
from concept_sliders.sliders.formats.slider_files import load_slider

MANY = 60_000
NAME = "lora_unet_mid_block_attentions_0_proj_in"


def header_of(names) -> bytes:
    """A safetensors file of one-number tensors with these names, in this order; alike names share their number."""
    places = {name: 4 * place for place, name in enumerate(dict.fromkeys(names))}
    entries = (
        f'{json.dumps(name)}:{{"dtype":"F32","shape":[1],"data_offsets":[{places[name]},{places[name] + 4}]}}'
        for name in names
    )
    text = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * len(places))


@pytest.mark.parametrize("last", ["another.diff", "0.diff", f"{MANY - 1}.diff"])
def test_a_large_header_is_read_once(last, tmp_path):
    """One look at every name: a comparison of all with all would take minutes."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of([*(f"{n}.diff" for n in range(MANY)), last]))
    start = time.perf_counter()
    found = repeated_in_header(path)
    assert time.perf_counter() - start < 5
    assert found == (None if last == "another.diff" else last)


def test_a_name_twice_at_the_end_of_a_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of(["a.diff", "b.diff", "c.diff", "c.diff"]))
    with pytest.raises(ValueError, match=r"x.safetensors is damaged: it has 'c.diff' twice"):
        load_slider(path)


def test_the_same_name_at_two_depths_is_no_repeat(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of(["dtype", "shape"]))
    assert repeated_in_header(path) is None


def layers(count: int = 2) -> dict[str, torch.Tensor]:
    parts = {"lora_down.weight": (2, 3), "lora_up.weight": (4, 2), "alpha": ()}
    return {f"{NAME}{i}.{part}": torch.full(shape, i + 1.0) for i in range(count) for part, shape in parts.items()}


def saved(state, path, zipped: bool) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


def renamed(path, old: str, new: str, zipped: bool) -> None:
    """Write another name of the same length over a name in the pickle, as only a hand can."""
    assert len(old) == len(new)
    if not zipped:
        content = path.read_bytes()
        assert content.count(old.encode()) == 1
        path.write_bytes(content.replace(old.encode(), new.encode()))
        return
    before = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, content.replace(old.encode(), new.encode()) if "data.pkl" in name else content)


STATES = {
    "plain": lambda tensors: tensors,
    "ordered": OrderedDict,
    "wrapped": lambda tensors: {"state_dict": OrderedDict(tensors), "step": 3},
    "of a module": lambda tensors: _with_metadata(tensors),
}


def _with_metadata(tensors):
    state = OrderedDict(tensors)
    state._metadata = {"": {"version": 1}}
    return state


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_a_name_twice_in_a_pickle(state, zipped, tmp_path):
    path = tmp_path / ("x.pt" if zipped else "x.ckpt")
    saved(STATES[state](layers()), path, zipped)
    assert len(load_slider(path).layers) == 2
    renamed(path, f"{NAME}1.alpha", f"{NAME}0.alpha", zipped)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: it has '{NAME}0.alpha' twice"):
        load_slider(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_ordinary_pickles_repeat_nothing(zipped, tmp_path):
    """Names, tensors and memory that are shared between entries and between dictionaries are no repeats."""
    tensors = layers(40)
    one = next(iter(tensors.values()))
    whole = torch.ones(6, 4)
    views = {"b.lora_down.weight": whole[:2], "b.lora_up.weight": whole[:, :2]}
    shared = {**tensors, "a.lora_down.weight": one, **views, "alphas": dict.fromkeys(tensors, 1), "n": [1, 1, 1]}
    saved({"state_dict": shared, "again": shared}, tmp_path / "x", zipped)
    assert repeated_in_pickle(tmp_path / "x") is None


def test_pickles_of_every_protocol(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        torch.save(layers(), tmp_path / "x.pt", pickle_protocol=protocol)
        assert repeated_in_pickle(tmp_path / "x.pt") is None


def test_a_large_pickle(tmp_path):
    saved({f"{n}.alpha": 1.0 for n in range(MANY)}, tmp_path / "x.pt", True)
    start = time.perf_counter()
    assert repeated_in_pickle(tmp_path / "x.pt") is None
    assert time.perf_counter() - start < 10
