"""Image pairs in every format that Pillow reads, and what is said of files in others."""

import pytest
from concept_sliders.tests.support.image_folders import put
from concept_sliders.training.pairs.folders import left_out, read_pairs
from concept_sliders.training.pairs.image_files import endings, read_image
from PIL import Image

WRITTEN = sorted(end for end in endings() if Image.registered_extensions()[end] in Image.SAVE)


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("ending", WRITTEN)
def test_every_format_that_pillow_reads_makes_pairs(tmp_path, ending):
    """Those that it writes too; whatever it may have lost of the colours, less is darker than more."""
    kind = Image.registered_extensions()[ending]
    mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(kind, "RGB")
    for name, shade in (("less", 40), ("more", 210)):
        Image.new("RGB", (64, 64), (shade,) * 3).convert(mode).save(tmp_path / f"x_{name}{ending}", kind)
    (pair,) = read_pairs(tmp_path, side=64)
    less, more = (image.mean().item() for image in pair.images)
    assert more > less + 0.5 and (mode == "1" or abs(less - 40 / 255) + abs(more - 210 / 255) < 0.02)
    assert left_out(tmp_path) == ""


def test_floating_point_images_are_refused(tmp_path):
    Image.new("F", (64, 64), 0.5).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff: its numbers are 32-bit floats"):
        read_image(tmp_path / "x.tiff")


def test_what_is_not_read_is_named(tmp_path):
    put(tmp_path, "less/a.png", "more/a.png", "masks/a.png")
    assert left_out(tmp_path) == ""
    strange = ["masks/a.heic", "less/b.heic", "less/notes.md", "raw/c.dng"]
    (tmp_path / "raw").mkdir()
    for name in (*strange, "less/.hidden.heic", "less/a.txt"):
        (tmp_path / name).write_text("an image of another kind")
    assert len(read_pairs(tmp_path, side=64)) == 1
    said, _, names = left_out(tmp_path).partition(": ")
    assert said.startswith("left out") and sorted(names.split(", ")) == sorted(strange)


@pytest.mark.parametrize(
    ("images", "others", "says"),
    [
        ([], ["less/a.heic", "more/a.heic"], "holds no images that can be read.*less/a.heic, more/a.heic"),
        (["less/a.png"], ["more/a.heic"], "holds one image"),
        (["less/a.png", "less/b.png"], ["more/a.heic"], r"from the subfolders less\..* Left out.*more/a\.heic"),
        (["less/a.png", "less/b.png", "more/a.png"], ["more/b.heic"], r"lacks b.* Left out.*more/b\.heic"),
    ],
)
def test_what_is_missing_for_being_of_another_kind_is_named(tmp_path, images, others, says):
    put(tmp_path, *images)
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("-")
    with pytest.raises(ValueError, match=says):
        read_pairs(tmp_path)
