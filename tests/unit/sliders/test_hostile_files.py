"""Damaged and hostile slider files: a named error or a whole slider, no code run, nothing half-loaded."""

import io
import json
import os
import struct

import pytest
import torch
from concept_sliders.sliders.adapters import PARTS
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.tests.support.slider_files import LAYERS, loaded_or_refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content_of(kind: str) -> bytes:
    if kind == "safetensors":
        return save(tensors(), metadata={"concept_sliders": '{"format": 1, "name": "age"}'})
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=kind == "pt")
    return buffer.getvalue()


CONTENT = {kind: content_of(kind) for kind in ("safetensors", "pt", "ckpt")}  # .ckpt: the pickles of old


@pytest.mark.parametrize("kind", CONTENT)
def test_cut_off_at_every_byte(kind, tmp_path):
    path, content = tmp_path / f"x.{kind}", CONTENT[kind]
    step = 1 if kind == "safetensors" else 7
    for length in range(0, len(content), step):
        path.write_bytes(content[:length])
        slider = loaded_or_refused(path)
        if kind == "safetensors":
            assert slider is None, f"loaded from {length} of {len(content)} bytes"
        elif slider is not None:  # only an archive's last bytes, a comment's length, may be missing
            assert len(slider.layers) == LAYERS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONTENT)
@quick
@given(data=st.data())
def test_flipped_bytes(kind, tmp_path, data):
    content = bytearray(CONTENT[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    loaded_or_refused(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONTENT)
@quick
@given(content=st.binary(max_size=200))
def test_any_bytes(kind, tmp_path, content):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    assert loaded_or_refused(path) is None


ENDINGS = sorted(PARTS | {"lora_A.weight", "lora_B.weight", "set_weight", "weight"})
# Mostly alike, so that some of the parts fit each other
shapes = st.lists(st.sampled_from((2, 2, 2, 2, 1, 3, 0)), min_size=0, max_size=4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@quick
@given(data=st.data())
def test_any_parts_of_any_shape_and_type(tmp_path, data):
    """Either the file is refused, or all of it is loaded and can be written and read back."""
    parts = data.draw(st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=6, unique=True))
    given_tensors = {
        f"lora_unet_x.{part}": torch.ones(data.draw(shapes)).to(data.draw(st.sampled_from(DTYPES + FP8)))
        for part in parts
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(given_tensors))
    slider = loaded_or_refused(path)
    if slider is not None:
        save_slider(slider, tmp_path / "again.safetensors", torch.float32)
        again = load_slider(tmp_path / "again.safetensors")
        assert again.layers["lora_unet_x"].parts.keys() == slider.layers["lora_unet_x"].parts.keys()


@pytest.mark.parametrize("dtype", FP8)
def test_eight_bit_floats_are_the_same_numbers(dtype, tmp_path):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    every = every[torch.isfinite(every.float())]
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a.lora_down.weight": every[None], "a.lora_up.weight": torch.ones(3, 1).to(dtype)}))
    layer = load_slider(path).layers["a"]
    assert torch.equal(layer.down.float(), every[None].float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["lora_down.weight", "lora_up.weight", "alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_numbers_that_are_none(bad, part, dtype, tmp_path):
    content = {key: value.to(dtype) for key, value in tensors().items()}
    key = next(key for key in content if key.endswith(part))
    content[key] = content[key].clone()
    content[key].view(-1)[0] = bad
    (tmp_path / "x.safetensors").write_bytes(save(content))
    with pytest.raises(ValueError, match=r"x.safetensors.*(NaN|finite)"):
        load_slider(tmp_path / "x.safetensors")


def test_complex_numbers(tmp_path):
    for suffix, write in (("pt", torch.save), ("safetensors", lambda t, p: p.write_bytes(save(t)))):
        path = tmp_path / f"x.{suffix}"
        write(
            {"a.lora_down.weight": torch.ones(2, 3, dtype=torch.complex64), "a.lora_up.weight": torch.ones(4, 2)},
            path,
        )
        with pytest.raises(ValueError, match=r"floating-point numbers; got torch.complex64"):
            load_slider(path)


def with_header(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def with_entries(*entries: tuple[str, str, int, int]) -> bytes:
    texts = [f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{a},{b}]}}' for name, shape, a, b in entries]
    return with_header(("{" + ",".join(texts) + "}").encode(), bytes(entries[-1][3]))


HEADERS = {
    "huge length": with_header(b"{}", length=2**63),
    "length beyond the file": with_header(b"{}", length=10**6),
    "nested": with_header(b"[" * 200_000),
    "nested metadata": with_header(b'{"__metadata__":' + b'{"a":' * 50_000),
    "empty": with_header(b"{}"),
    "not text": with_header(b"\xff\xfe{}"),
    "number instead of a header": with_header(b"7"),
    "negative shape": with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
    "shape that overflows": with_header(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    ),
    "offsets outside": with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    "unknown type": with_header(b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "same tensor twice": with_entries(("a.diff", "[2,3]", 0, 24), ("a.diff", "[3,2]", 0, 24)),
    "overlapping tensors": with_entries(("a.diff", "[2]", 0, 8), ("b.diff", "[2]", 4, 12)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(case, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[case])
    with pytest.raises(ValueError, match=r"x\.safetensors") as caught:
        load_slider(path)
    assert str(path) in str(caught.value)
    if case == "same tensor twice":
        assert "'a.diff' twice" in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"useful_range": [NaN, 1]}',
        '{"recipe": {"eta": Infinity}}',
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1, "gate": {"start": "0", "end": 1}}',
        '{"format": 1, "gate": {"__class__": 1}}',
        '{"format": 1, "recipe": 3}',
        '{"format": {"a": 1}}',
    ],
)
def test_our_own_header_field(field, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors(), metadata={"concept_sliders": field}))
    with pytest.raises(ValueError, match=r"x\.safetensors") as caught:
        load_slider(path)
    assert str(path) in str(caught.value)


def test_a_middle_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    parts = {
        "lora_mid.weight": (1, 1, 3000, 3000),
        "lora_down.weight": (1, 10**5, 1, 1),
        "lora_up.weight": (4, 1, 1, 1),
    }
    path.write_bytes(save({f"a.{part}": torch.zeros(shape) for part, shape in parts.items()}))
    with pytest.raises(ValueError, match="the parts of its LoCon do not fit"):
        load_slider(path)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".CKPT", ".pth", ""])
def test_safetensors_under_other_endings_are_what_they_are(ending, tmp_path):
    content = CONTENT["safetensors"]
    (tmp_path / "x.safetensors").write_bytes(content)
    (tmp_path / f"renamed{ending}").write_bytes(content)
    expected, renamed = (load_slider(tmp_path / name) for name in ("x.safetensors", f"renamed{ending}"))
    assert renamed.content_hash == expected.content_hash
    (tmp_path / f"cut{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_slider(tmp_path / f"cut{ending}")


def test_places_that_are_no_files(tmp_path):
    for name in ("folder.safetensors", "folder.pt", "plain"):
        (tmp_path / name).mkdir()
        with pytest.raises(FileNotFoundError, match=f"{name} is a folder, and no PEFT adapter"):
            load_slider(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "nowhere.pt").symlink_to(tmp_path / "gone.pt")
    for name in ("pipe.safetensors", "nowhere.pt", "gone\n.safetensors"):
        with pytest.raises(FileNotFoundError, match="There is no slider file"):
            load_slider(tmp_path / name)
    for kind in CONTENT:
        (tmp_path / f"empty.{kind}").touch()
        assert loaded_or_refused(tmp_path / f"empty.{kind}") is None


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "a\nb", "", ".", "ö" * 300])
def test_odd_layer_names_are_only_names(name, tmp_path):
    layer = LowRank(torch.ones(2, 3), torch.ones(4, 2))
    save_slider(Slider("odd", {f"{name}x": layer}), tmp_path / "x.safetensors")
    assert set(load_slider(tmp_path / "x.safetensors").layers) == {f"{name}x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors"]


def test_json_of_a_configuration_that_is_too_large(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(save(tensors()))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"note": "x" * (1 << 23)}))
    with pytest.raises(ValueError, match="too large for an adapter's configuration"):
        load_slider(tmp_path)
