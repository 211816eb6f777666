"""Hostile pickles: no code in them is run, and nothing but plain tensors comes out."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.tests.support.slider_files import LAYERS, loaded_or_refused, tensors


class Calls:
    """Pickles to a call of a function, which would leave a trace."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile(trace: Path) -> list:
    return [
        Calls(os.system, f"touch {trace}"),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        Calls(Path.touch, trace),
        Calls(os.mkdir, str(trace)),
        Calls(setattr, Slider, "trace", 1),
        Calls(torch.load, str(trace)),
        Calls(getattr, Path, "touch"),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["top", "value", "beside", "raw"])
def test_pickles_that_would_run_code(number, protocol, place, tmp_path):
    trace = tmp_path / "trace"
    bomb = hostile(trace)[number]
    content = {"top": bomb, "value": {"a.lora_up.weight": bomb}, "beside": {**tensors(), "b.alpha": bomb}}
    for suffix in ("pt", "ckpt", "bin"):
        path = tmp_path / f"x.{suffix}"
        if place == "raw":
            path.write_bytes(pickle.dumps(bomb, protocol))
        else:
            torch.save(content[place], path, pickle_protocol=protocol)
        with pytest.raises(ValueError, match="nothing in it was run") as caught:
            load_slider(path)
        assert str(path) in str(caught.value)
    assert not trace.exists()
    assert not hasattr(Slider, "trace")


def test_a_pickle_that_would_run_code_if_it_were_unpickled(tmp_path):
    """The bombs of the test above are live."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(hostile(trace)[0]))
    assert trace.exists()


def test_a_tensor_of_more_numbers_than_it_has(tmp_path):
    huge = torch.ones(1).expand(10**6, 10**6)
    torch.save({"a.lora_down.weight": huge, "a.lora_up.weight": torch.ones(2, 10**6)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: 'a.lora_down.weight' is not an ordinary tensor"):
        load_slider(tmp_path / "x.pt")


def test_tensors_that_are_no_plain_ones(tmp_path):
    for odd in (torch.ones(2, 3).to_sparse(), torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)):
        torch.save({"a.lora_down.weight": odd, "a.lora_up.weight": torch.ones(4, 2)}, tmp_path / "x.pt")
        assert loaded_or_refused(tmp_path / "x.pt") is None


def test_states_within_states(tmp_path):
    path = tmp_path / "x.pt"
    nested = tensors()
    torch.save({"state_dict": nested, "epoch": 3, "note": "x"}, path)
    assert len(load_slider(path).layers) == LAYERS
    torch.save({"state_dict": nested, "c.alpha": torch.tensor(1.0)}, path)
    with pytest.raises(ValueError, match=r"beside it the tensor 'c.alpha'"):
        load_slider(path)
    for _ in range(300):
        nested = {"state_dict": nested}
    torch.save(nested, path)
    assert loaded_or_refused(path) is None
    circle: dict = {}
    circle["state_dict"] = circle
    torch.save(circle, path)
    assert loaded_or_refused(path) is None


def test_plain_numbers_as_alpha(tmp_path):
    content = {key: value for key, value in tensors().items() if not key.endswith("alpha")}
    name = next(iter(content)).removesuffix(".lora_down.weight")
    torch.save({**content, f"{name}.alpha": 1}, tmp_path / "x.pt")
    assert torch.equal(load_slider(tmp_path / "x.pt").layers[name].up, content[f"{name}.lora_up.weight"] / 2)


def test_an_archive_of_something_else(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escape.txt", "x")
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    assert loaded_or_refused(path) is None
    assert not (tmp_path.parent.parent / "escape.txt").exists()
