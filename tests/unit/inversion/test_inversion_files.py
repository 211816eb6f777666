"""Inversion files: what comes back, and what is refused."""

from dataclasses import replace

import pytest
import torch
from concept_sliders.inversion import inversion_files
from concept_sliders.inversion.inversion import Inversion
from concept_sliders.inversion.inversion_files import load_inversion, save_inversion
from concept_sliders.inversion.settings import InversionSettings
from concept_sliders.sliders.formats import atomic_write
from concept_sliders.tests.support.full_disk import full_disk
from safetensors.torch import load_file, save_file


@pytest.fixture
def inversion():
    """Of two images, in three steps."""
    return Inversion(
        noise=torch.randn(2, 4, 8, 8),
        clean=torch.randn(2, 4, 8, 8),
        sigmas=torch.tensor([3.0, 2.0, 1.0, 0.0]),
        embeddings=torch.randn(3, 2, 5, 6),
        pooled=torch.randn(3, 2, 7),
        options={"width": 64, "attention_mask": torch.ones(1, 5, dtype=torch.long)},
        positive=(torch.randn(1, 5, 6), {"height": 32, "reference_latents": [torch.randn(1, 4), torch.randn(1, 3)]}),
        windows=((0.0, 0.3), (0.3, 1 / 1.7), (1 / 1.7, 1.0)),
        settings=InversionSettings(steps=3, cfg=7.25, pooled="optimised"),
        family="SDXL",
        weights_hash="0123456789abcdef",
        prediction="EPS",
        done=2,
        losses=((0.5, 0.25), (0.125, 0.1)),
        error=torch.tensor([0.01, float("nan")]),
    )


def test_an_inversion_comes_back_as_it_was(inversion, tmp_path):
    path = tmp_path / "folder" / "mine.safetensors"
    save_inversion(inversion, path)
    again = load_inversion(path)
    for name in ("noise", "clean", "sigmas", "embeddings", "pooled"):
        assert torch.equal(getattr(again, name), getattr(inversion, name)), name
    assert torch.equal(again.error, inversion.error) or torch.isnan(again.error[1])
    for name in ("windows", "settings", "family", "weights_hash", "prediction", "done", "losses"):
        assert getattr(again, name) == getattr(inversion, name), name
    assert again.options["width"] == 64
    assert torch.equal(again.options["attention_mask"], inversion.options["attention_mask"])
    assert torch.equal(again.positive[0], inversion.positive[0])
    beside, expected = again.positive[1], inversion.positive[1]
    assert beside.keys() == expected.keys() and beside["height"] == 32
    assert all(map(torch.equal, beside["reference_latents"], expected["reference_latents"]))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine.safetensors"]
    assert again.report() == inversion.report()


def test_each_step_has_its_entry(inversion):
    encoding, options = inversion.entry(1)
    assert torch.equal(encoding, inversion.embeddings[1])
    assert torch.equal(options["pooled_output"], inversion.pooled[1]) and options["width"] == 64
    assert inversion.distinct == 3
    shared = replace(inversion, embeddings=inversion.embeddings[:1], pooled=None)
    assert shared.distinct == 1 and torch.equal(shared.entry(2)[0], inversion.embeddings[0])


def test_batch_entries_are_told_by_their_noise(inversion):
    one, two = inversion.noise
    assert inversion.match_images(torch.stack([two, one, two])).tolist() == [1, 0, 1]
    assert inversion.match_images(torch.stack([two, one]).half()).tolist() == [1, 0]
    assert inversion.match_images(torch.stack([two, torch.zeros_like(one)])) is None
    assert inversion.match_images(torch.zeros(1, 4, 8, 9)) is None


def test_the_report_says_what_was_not_done(inversion):
    report = inversion.report()
    assert "Cancelled after 2 of 3 steps" in report and "1 %, not known" in report
    assert "step 2: loss 0.125 to 0.1" in report


def test_a_failed_write_leaves_what_was_there(inversion, tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    save_inversion(inversion, path)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(atomic_write, "save_file", full)
    with pytest.raises(OSError, match=r"Cannot write the inversion.*no space left"):
        save_inversion(inversion, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_what_was_there(inversion, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_inversion(inversion, path)
    before = path.read_bytes()
    with full_disk(5000), pytest.raises(OSError, match=r"Cannot write the inversion to .*mine\.safetensors"):
        save_inversion(inversion, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_no_file_can_hold_is_named(inversion, tmp_path):
    odd = replace(inversion, options={"patch": object()})
    with pytest.raises(ValueError, match="holds 'patch', a object"):
        save_inversion(odd, tmp_path / "odd.safetensors")
    assert list(tmp_path.iterdir()) == []


def spoiled(inversion, tmp_path, **changes):
    """A file whose tensors are changed; None leaves one out."""
    path = tmp_path / "spoiled.safetensors"
    save_inversion(inversion, path)
    with inversion_files.safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata=header)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": None}, "it lacks 'noise'"),
        ({"sigmas": torch.zeros(9)}, "do not belong together"),
        ({"embeddings": torch.zeros(3, 5, 5, 6)}, "do not belong together"),
        ({"clean": torch.zeros(1, 4, 8, 8)}, "do not belong together"),
        ({"noise": torch.full((2, 4, 8, 8), float("nan"))}, "not finite"),
    ],
)
def test_damaged_files_are_named(inversion, tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"spoiled\.safetensors is damaged.*{message}"):
        load_inversion(spoiled(inversion, tmp_path, **changes))


def test_other_files_are_refused(inversion, tmp_path):
    with pytest.raises(FileNotFoundError, match="no inversion file at"):
        load_inversion(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_inversion(tmp_path / "text.safetensors")
    save_file({"noise": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by Save Inversion"):
        load_inversion(tmp_path / "other.safetensors")
    save_inversion(inversion, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_inversion(tmp_path / "cut.safetensors")
