"""Slider files: what is written, what is read, and what is refused."""

import json
import os
import pickle

import pytest
import torch
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.tests.support.full_disk import full_disk
from concept_sliders.tests.support.slider_files import state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "diffusion_model.blocks.0.attn.qkv"


def low_rank(rank: int = 2, out: int = 6, inner: tuple[int, ...] = (5,)) -> LowRank:
    tail = (1,) * (len(inner) - 1)
    return LowRank(torch.randn(rank, *inner), torch.randn(out, rank, *tail))


@pytest.fixture
def slider() -> Slider:
    torch.manual_seed(0)
    recipe = {"eta": 4.0, "preserve": ["glasses"]}
    info = SliderInfo("young", "old", (-2.0, 3.0), Gate(0.2, 1.0, 0.1), recipe, "SDXL", "abc", extra={"ours": "x"})
    layers = {KOHYA: low_rank(), "lora_unet_conv": low_rank(3, 6, (5, 3, 3)), DOTTED: low_rank()}
    return Slider("age", layers, info)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(slider, tmp_path, dtype):
    path = tmp_path / "folder" / "age.safetensors"
    save_slider(slider, path, dtype)
    back = load_slider(path)
    assert (back.name, back.rank) == ("age", 3)
    for field in ("less", "more", "useful_range", "gate", "recipe", "family", "base_model_hash"):
        assert getattr(back.info, field) == getattr(slider.info, field)
    assert back.info.extra["ours"] == "x"
    assert back.info.source == str(path)
    assert set(back.layers) == set(slider.layers)
    for name, layer in slider.layers.items():
        assert torch.equal(back.layers[name].down, layer.down.to(dtype))
        assert torch.equal(back.layers[name].up, layer.up.to(dtype))
    assert [p.name for p in path.parent.iterdir()] == ["age.safetensors"]


def test_keys_and_header_are_those_of_other_tools(slider, tmp_path):
    save_slider(slider, tmp_path / "age.safetensors")
    tensors = load_file(tmp_path / "age.safetensors")
    for name, down, up in ((KOHYA, "lora_down", "lora_up"), (DOTTED, "lora_A", "lora_B")):
        expected = {f"{name}.{down}.weight", f"{name}.{up}.weight", f"{name}.alpha"}
        assert {key for key in tensors if key.startswith(name)} == expected
    assert tensors["lora_unet_conv.alpha"].item() == 3.0  # the rank: the scale is 1
    with safe_open(tmp_path / "age.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["concept_sliders"])["more"] == "old"
    assert header["modelspec.title"] == "age"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "3"


def test_saved_again_it_is_the_same(slider, tmp_path):
    save_slider(slider, tmp_path / "a.safetensors")
    save_slider(load_slider(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    one, two = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("down_end", "up_end"),
    [
        (".lora_down.weight", ".lora_up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora_A", ".lora_B"),
    ],
)
@pytest.mark.parametrize(
    ("alpha", "scale"),
    [(None, 1.0), (torch.tensor(1.0), 0.25), (torch.tensor([2.0]), 0.5), (torch.tensor(3.0), 0.75)],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_layouts_and_alphas(down_end, up_end, alpha, scale, kind, tmp_path):
    layer = low_rank(rank=4)
    tensors = {f"some.layer{down_end}": layer.down.half(), f"some.layer{up_end}": layer.up.half()}
    if alpha is not None:
        tensors["some.layer.alpha"] = alpha
    path = tmp_path / f"x.{kind}"
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    loaded = load_slider(path)
    assert loaded.name == "x"
    found = loaded.layers["some.layer"]
    assert torch.equal(found.down, layer.down.half())
    assert torch.equal(found.up.float(), layer.up.half().float() * scale)


BAD = {
    "no slider layers": ({"model.weight": torch.ones(2)}, "no slider layers.*model.weight"),
    "half a pair": (
        {**state(), "b.lora_down.weight": torch.ones(2, 3)},
        "layer b has lora_down.weight but no lora_up.weight",
    ),
    "NaN": (
        {**state(), "a.lora_up.weight": torch.full((4, 2), float("nan"))},
        "Layer a: 8 of the 8 numbers.*NaN",
    ),
    "infinite": ({**state(), "a.lora_down.weight": torch.full((2, 3), float("inf"))}, "Layer a: 6 of the 6"),
    "ranks": ({**state(), "a.lora_up.weight": torch.ones(4, 3)}, r"Layer a.*down \(2, 3\) and up \(4, 3\)"),
    "alpha": ({**state(), "a.alpha": torch.ones(3)}, "alpha must be one finite number"),
    "alphas alone": ({"a.alpha": torch.ones(()), "b.alpha": torch.ones(())}, "no slider layers.*a.alpha, b.alpha"),
    "magnitudes alone": ({**state(), "b.dora_scale": torch.ones(4, 1)}, "layer b has only dora_scale"),
    "integers": ({"a.diff": torch.ones(2, dtype=torch.int32)}, "layer a: diff must be floating-point.*int32"),
    "control LoRA": ({**state(), "b.set_weight": torch.ones(4)}, "not supported: a replaced weight.*b.set_weight"),
    "two spellings": ({**state(), "a.lora_A.weight": torch.ones(2, 3)}, "two tensors for the same part of one layer"),
    "two names": (
        {
            f"{name}.{end}.weight": torch.ones(2, 2)
            for name in ("unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in")
            for end in ("lora_down", "lora_up")
        },
        "are two names of one layer",
    ),
    "empty": ({}, "no slider layers.*empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content(case, tmp_path):
    tensors, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_slider(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        load_slider(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_truncated_file(slider, tmp_path, kept, kind):
    path = tmp_path / f"age.{kind}"
    save_slider(slider, path) if kind == "safetensors" else torch.save(state(), path)
    content = path.read_bytes()
    # A .pt is a zip archive: without its last byte only a comment length is short
    path.write_bytes(content[:kept] if kept >= 0 or kind == "safetensors" else content[:-200])
    with pytest.raises(ValueError, match=f"age.{kind} is truncated"):
        load_slider(path)


def test_noise_instead_of_a_file(tmp_path):
    for kind in ("safetensors", "pt", "ckpt", "bin"):
        path = tmp_path / f"noise.{kind}"
        path.write_bytes(bytes(range(256)) * 8)
        with pytest.raises(ValueError, match=f"noise.{kind} is truncated"):
            load_slider(path)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_a_pickle_that_would_run_code(tmp_path):
    torch.save({"a": Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pt", "old.ckpt"):
        with pytest.raises(ValueError, match="nothing in it was run"):
            load_slider(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "holds a list"), ({"a": 1}, "no slider layers.*such as a")]
)
def test_pickles_of_other_things(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load_slider(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got list"),
        ('{"format": 99}', "format 99"),
        ('{"gate": {"start": 2}}', "start 2"),
        ('{"gate": 3}', "cannot be understood"),
        ('{"useful_range": [1]}', "cannot be understood"),
    ],
)
def test_bad_headers(field, message, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(state(), path, metadata={"concept_sliders": field})
    with pytest.raises(ValueError, match=message) as caught:
        load_slider(path)
    assert str(path) in str(caught.value)


def test_folder_that_cannot_be_written(slider, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Cannot write the slider to .*file/age.safetensors"):
        save_slider(slider, tmp_path / "file" / "age.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", [0o755, 0o775, 0o700])
def test_whoever_may_read_the_folder_may_read_the_file(slider, tmp_path, mode):
    tmp_path.chmod(mode)
    save_slider(slider, tmp_path / "age.safetensors")
    assert (tmp_path / "age.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_a_failed_save_leaves_the_old_file(slider, tmp_path):
    path = tmp_path / "age.safetensors"
    save_slider(slider, path)
    before = path.read_bytes()
    huge = Slider("huge", {"a": LowRank(torch.full((2, 3), 1e5), torch.ones(4, 2))})
    with pytest.raises(ValueError, match=r"up to 100000 do not fit torch.float16"):
        save_slider(huge, path)
    unwritable = Slider("odd", slider.layers, SliderInfo(recipe={"f": print}))
    with pytest.raises(ValueError, match="recipe cannot be written"):
        save_slider(unwritable, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["age.safetensors"]
    target = tmp_path / "folder.safetensors"
    target.mkdir()
    with pytest.raises(OSError, match="Cannot write"):
        save_slider(slider, target)  # fails at the very last, the rename
    assert sorted(p.name for p in tmp_path.iterdir()) == ["age.safetensors", "folder.safetensors"]


@pytest.mark.parametrize("room", [0, 1000])
def test_on_a_full_disk_the_file_is_named_and_no_part_of_it_is_left(slider, tmp_path, room):
    path = tmp_path / "age.safetensors"
    save_slider(Slider("age", {KOHYA: low_rank()}), path)
    before = path.read_bytes()
    with full_disk(room), pytest.raises(OSError, match=r"Cannot write the slider to .*age\.safetensors: .*[Ff]ile"):
        save_slider(slider, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
