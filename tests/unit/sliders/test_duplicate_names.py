"""Names given twice in a file: readers differ about which entry is meant, so the file is refused, and quickly."""

import json
import struct
import time

import pytest
from concept_sliders.sliders.formats.slider_files import load_slider, repeated_in_header

MANY = 60_000


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
    """One pass over the names: a comparison of all with all would take minutes."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of([*(f"{n}.diff" for n in range(MANY)), last]))
    start = time.process_time()
    found = repeated_in_header(path)
    assert time.process_time() - start < 5
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
